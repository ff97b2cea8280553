-- Logins for production: an owner that migrates, and two that own nothing. Run once, by a superuser, before the first
-- migration; again after a restore on another server. An installation that is there already is handed over. Passwords come from psql's variables:
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

-- What another login has migrated so far: tables, functions, policies, and what tables to come give to whom. REASSIGN OWNED knows
-- neither policies nor default privileges, and not the superuser that every server begins with.
SELECT format('ALTER TABLE %s OWNER TO analytics_owner', c.oid::regclass) FROM pg_class c
WHERE c.relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN (current_schema(), 'analytics_tenant'))
    AND (c.relkind IN ('r', 'p', 'v') OR c.relkind = 'S' AND NOT EXISTS (  -- the sequence of a column goes with its table
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype IN ('a', 'i')
    )) AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')
ORDER BY c.relkind = 'v' \gexec
SELECT format('ALTER FUNCTION %s OWNER TO analytics_owner', p.oid::regprocedure) FROM pg_proc p
WHERE p.pronamespace = current_schema()::regnamespace AND p.proname ~ '^(orgs|ingestion|usage|reliability|exports)_' \gexec
SELECT format('ALTER SCHEMA %I OWNER TO analytics_owner', nspname) FROM pg_namespace
WHERE nspname = 'analytics_tenant' \gexec
SELECT format('ALTER POLICY owner ON %s TO analytics_owner', polrelid::regclass) FROM pg_policy WHERE polname = 'owner' \gexec
SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %s IN SCHEMA %s %s %s ON %s %s %s', o.role, d.defaclnamespace::regnamespace, o.verb,
    a.privilege_type, CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' ELSE 'SEQUENCES' END, o.preposition, a.grantee::regrole)
FROM pg_default_acl d, aclexplode(d.defaclacl) a, LATERAL (VALUES
    ('analytics_owner'::regrole, 'GRANT', 'TO'), (d.defaclrole::regrole, 'REVOKE', 'FROM')
) AS o(role, verb, preposition)
WHERE d.defaclnamespace = current_schema()::regnamespace AND d.defaclobjtype IN ('r', 'S')
    AND d.defaclrole <> 'analytics_owner'::regrole AND a.grantee = ANY (ARRAY[
        'analytics_web', 'analytics_tenant', 'analytics_staff', 'analytics_tasks'
    ]::regrole[]) \gexec
