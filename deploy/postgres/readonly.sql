-- A role that Grafana reads figures with: rollups, incidents, names of orgs and models. No users, sessions, keys, audit trail, raw
-- events, quarantine, and of an org no address. It sees every org: give it to the platform's own people alone.
--
--   READONLY_PASSWORD=… psql "$DATABASE_URL" -f deploy/postgres/readonly.sql
--
-- As the owner of the tables, after `migrate`, and again after each upgrade: it may run as often as you like, and what it no longer
-- grants is taken away. Making the role needs CREATEROLE; where it exists, its owner can do the rest. Neither the command line nor
-- the list of processes shows the password; with `log_statement = ddl` the server's log does. `-v password=…` is the other way.

\set ON_ERROR_STOP on
\getenv password READONLY_PASSWORD
\if :{?password}
\else
  \warn 'READONLY_PASSWORD is not set'
  \set password ''
\endif
SELECT :'password' = '' AS without_password \gset
\if :without_password
  DO $$ BEGIN RAISE EXCEPTION 'READONLY_PASSWORD should hold a password'; END $$;
\endif

BEGIN;
SELECT 'CREATE ROLE analytics_readonly' WHERE to_regrole('analytics_readonly') IS NULL \gexec
ALTER ROLE analytics_readonly LOGIN NOINHERIT NOCREATEDB NOCREATEROLE CONNECTION LIMIT 20 PASSWORD :'password';
-- A dashboard that asks too much is ended, and never holds up the service. The role could change these for a session of its own, so
-- they are no limit to a stranger; what it may read at all, below, is.
ALTER ROLE analytics_readonly SET default_transaction_read_only = on;
ALTER ROLE analytics_readonly SET statement_timeout = '15s';
ALTER ROLE analytics_readonly SET lock_timeout = '2s';
ALTER ROLE analytics_readonly SET idle_in_transaction_session_timeout = '15s';
ALTER ROLE analytics_readonly SET TimeZone = 'UTC';

-- What dashboards read, and no more. A partitioned table is enough: its partitions are read through it.
SELECT format('REVOKE ALL ON %I.%I FROM analytics_readonly', table_schema, table_name) FROM (
    SELECT table_schema, table_name FROM information_schema.role_table_grants WHERE grantee = 'analytics_readonly'
    UNION SELECT table_schema, table_name FROM information_schema.column_privileges WHERE grantee = 'analytics_readonly'
) AS granted \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO analytics_readonly', current_database()) \gexec
GRANT USAGE ON SCHEMA public TO analytics_readonly;
GRANT SELECT ON usage_daily, usage_hourly, usage_outcomes, reliability_incidents TO analytics_readonly;
GRANT SELECT (id, name, slug) ON orgs_org TO analytics_readonly;
GRANT SELECT (id, display_name) ON orgs_servedmodel TO analytics_readonly;

-- ── Row security ──────────────────────────────────────────────────────────────────────────────────────────────────
-- The role reads all orgs, so each table that it reads gets a policy that says so. One that has no row security (yet) too: the
-- policy does nothing there, and need not be thought of when that is switched on. For other roles nothing changes.
DO $$
DECLARE
    granted regclass;
BEGIN
    FOR granted IN
        SELECT DISTINCT format('%I.%I', table_schema, table_name)::regclass
        FROM information_schema.column_privileges WHERE grantee = 'analytics_readonly'
    LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_policy WHERE polrelid = granted AND polname = 'analytics_readonly_all');
        EXECUTE format('CREATE POLICY analytics_readonly_all ON %s FOR SELECT TO analytics_readonly USING (true)', granted);
    END LOOP;
END $$;
COMMIT;
