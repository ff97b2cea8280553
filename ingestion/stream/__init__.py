"""The door to a RabbitMQ stream: each message handled by exactly one committed batch, in order.

- `feed` speaks AMQP: messages from an offset on, on a connection and a thread of its own.
- `position` is the place in the database that says how far a stream was read, and by whom.
- `batching` takes messages from the one, makes batches, and moves the other in the transaction that stores them; `progress` says
  how that goes.
- `reader` waits for its turn, reads, and begins anew after whatever went wrong.
- `sharing` keeps several workers from taking more partitions than their part.
- `partitions` names the streams.
- `step` runs readers inside a Celery worker.
- `publishing` is the other end, for traces and tests.
"""
