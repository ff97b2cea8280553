-- Logins for production: an owner that migrates, and two that own nothing. Run once, by a superuser, before the first
-- migration; again after a restore on another server. Passwords come from psql's variables:
--   psql -v owner_password=… -v web_password=… -v worker_password=… -d analytics -f deploy/postgres/roles.sql
-- Afterwards: DATABASE_URL of `manage.py` names analytics_owner, that of web processes analytics_web_login, that of workers and
-- beat analytics_worker_login. "Roles of the database" in docs/operating.md says what each may do.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

SELECT format('CREATE ROLE %I NOLOGIN', name) FROM unnest(ARRAY[
    'analytics_web', 'analytics_tenant', 'analytics_staff', 'analytics_tasks'
]) AS r(name) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
-- NOINHERIT: a login has no right but those of the role that it acts in.
SELECT format('CREATE ROLE %I LOGIN NOINHERIT', name) FROM unnest(ARRAY[
    'analytics_owner', 'analytics_web_login', 'analytics_worker_login'
]) AS r(name) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

ALTER ROLE analytics_owner PASSWORD :'owner_password';
ALTER ROLE analytics_web_login PASSWORD :'web_password';
ALTER ROLE analytics_worker_login PASSWORD :'worker_password';

GRANT analytics_web, analytics_tenant, analytics_staff, analytics_tasks
    TO analytics_owner, analytics_web_login, analytics_worker_login;
-- Metrics count everybody's connections.
GRANT pg_read_all_stats TO analytics_tasks;
-- Maintenance settles and drops partitions: as the owner, for that long.
GRANT analytics_owner TO analytics_worker_login;

SELECT format('GRANT CONNECT, TEMPORARY, CREATE ON DATABASE %I TO analytics_owner', current_database()) \gexec
SELECT format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO analytics_web_login, analytics_worker_login, analytics_tasks',
    current_database()) \gexec
SELECT format('GRANT USAGE, CREATE ON SCHEMA %I TO analytics_owner', current_schema()) \gexec
