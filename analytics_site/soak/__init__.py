"""What `manage.py soak` is made of: load, processes, restarts, and what is seen meanwhile."""
