"""Row-level security: what each role of the database may do, and to whose rows. Called by migrations.

The figures of an org, and all else that has its id, are seen by a tenant's transaction of that org alone, whatever the query
forgets. Every table has this forced, for its owner too, but `usage_events`: COPY writes to no table that has it, and
TimescaleDB compresses none. There nobody but staff and tasks has a right at all, and a tenant has a view
(`ingestion.storage.guarding`).
"""

from django.db.backends.utils import CursorWrapper
from psycopg import sql

from .tenancy import DatabaseRole

OWN = sql.SQL("org_id = orgs_tenant()")
ALL = "SELECT, INSERT, UPDATE, DELETE"

_NO_RIGHT_TO_MAKE_ROLES = (
    "The roles of the service are missing, and this login may not make them:"
    " have a superuser run deploy/postgres/roles.sql."
)

_ROLES = """
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY {roles} LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;  -- another database of this server is migrated, too
            WHEN insufficient_privilege THEN RAISE EXCEPTION USING MESSAGE = {complaint}, ERRCODE = '42501';
        END;
        BEGIN
            IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                EXECUTE format('GRANT %I TO CURRENT_USER', role);
            END IF;
        EXCEPTION WHEN insufficient_privilege THEN  -- whoever made the roles has seen to it
            IF NOT pg_has_role(role, 'MEMBER') THEN
                RAISE EXCEPTION USING MESSAGE = {complaint}, ERRCODE = '42501';
            END IF;
        END;
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), role);
    END LOOP;
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
        AND NOT pg_has_role({tasks}, 'pg_read_all_stats', 'MEMBER')
    THEN
        EXECUTE format('GRANT pg_read_all_stats TO %I', {tasks});  -- metrics count everybody's connections
    END IF;
END $$;

CREATE FUNCTION orgs_tenant() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ SELECT nullif(current_setting('analytics.org', true), '')::uuid $$;
"""


def begin(cursor: CursorWrapper) -> None:
    """Make the roles, and give staff and tasks what they have in every table, those to come included."""
    roles = sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(sql.Literal(role.value) for role in DatabaseRole))
    cursor.execute(
        sql.SQL(_ROLES).format(
            roles=roles, complaint=sql.Literal(_NO_RIGHT_TO_MAKE_ROLES), tasks=sql.Literal(DatabaseRole.TASKS.value)
        )
    )
    both = sql.SQL("{}, {}").format(sql.Identifier(DatabaseRole.STAFF), sql.Identifier(DatabaseRole.TASKS))
    everybody = sql.SQL(", ").join(sql.Identifier(role) for role in DatabaseRole)
    cursor.execute("SELECT current_schema()")
    schema = sql.Identifier(cursor.fetchone()[0])
    for statement in (
        "GRANT {all} ON ALL TABLES IN SCHEMA {schema} TO {both}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {all} ON TABLES TO {both}",
        # A number that comes next tells nobody anything.
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {everybody}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE ON SEQUENCES TO {everybody}",
    ):
        cursor.execute(sql.SQL(statement).format(all=sql.SQL(ALL), schema=schema, both=both, everybody=everybody))


def end(cursor: CursorWrapper) -> None:
    """Take it all back. Roles go where no other database of the server has them."""
    for role in DatabaseRole:
        name = sql.Identifier(role)
        cursor.execute(sql.SQL("DROP OWNED BY {}").format(name))  # its rights in this database: it owns nothing
        cursor.execute(
            sql.SQL("DO $$ BEGIN DROP ROLE {}; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $$").format(
                name
            )
        )
    cursor.execute("DROP FUNCTION orgs_tenant()")


def grant(cursor: CursorWrapper, role: DatabaseRole, what: str, table: str) -> None:
    """`what` is a list of privileges, with columns where they are of some columns alone."""
    if what:
        cursor.execute(
            sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(what), sql.Identifier(table), sql.Identifier(role))
        )


def revoke(cursor: CursorWrapper, role: DatabaseRole, what: str, table: str) -> None:
    cursor.execute(
        sql.SQL("REVOKE {} ON {} FROM {}").format(sql.SQL(what), sql.Identifier(table), sql.Identifier(role))
    )


def protect(cursor: CursorWrapper, table: str, *, tenant: str = "", web: str = "", mine: sql.SQL = OWN) -> None:
    """Guard a table with rows of orgs. `tenant` may do so much to the rows that are `mine`, `web` to all of them."""
    cursor.execute(
        sql.SQL(
            "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY;"
            " CREATE POLICY owner ON {table} TO CURRENT_USER USING (true);"
            " CREATE POLICY all_orgs ON {table} TO {staff}, {tasks} USING (true)"
        ).format(
            table=sql.Identifier(table),
            staff=sql.Identifier(DatabaseRole.STAFF),
            tasks=sql.Identifier(DatabaseRole.TASKS),
        )
    )
    for name, role, what, whose in (
        ("one_org", DatabaseRole.TENANT, tenant, mine),
        ("callers", DatabaseRole.WEB, web, sql.SQL("true")),
    ):
        if what:
            cursor.execute(
                sql.SQL("CREATE POLICY {} ON {} TO {} USING ({})").format(
                    sql.Identifier(name), sql.Identifier(table), sql.Identifier(role), whose
                )
            )
            grant(cursor, role, what, table)


def expose(cursor: CursorWrapper, table: str) -> None:
    """Take the guard of a table away."""
    cursor.execute("SELECT polname FROM pg_policy WHERE polrelid = %s::regclass", [table])
    for (name,) in cursor.fetchall():
        cursor.execute(sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(name), sql.Identifier(table)))
    cursor.execute(
        sql.SQL("ALTER TABLE {0} DISABLE ROW LEVEL SECURITY; ALTER TABLE {0} NO FORCE ROW LEVEL SECURITY").format(
            sql.Identifier(table)
        )
    )


# A table that has an org's id, or is the table of orgs; a partition is reached through its table, or not at all.
_UNGUARDED = """
SELECT c.relname,
    c.relrowsecurity AND c.relforcerowsecurity AND (r.rolsuper OR EXISTS (
        SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND r.oid = ANY(p.polroles)
    )) AS is_guarded,
    array(SELECT name FROM unnest(%(strangers)s::text[]) AS s(name) WHERE
        has_table_privilege(name, c.oid, %(any)s) OR has_any_column_privilege(name, c.oid, 'SELECT, INSERT, UPDATE')
    ) AS strangers,
    c.relispartition
FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND (
    c.relname = 'orgs_org' OR EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attname IN ('org_id', 'org_ids')
    )
) ORDER BY 1
"""


def gaps(cursor: CursorWrapper, *, unguarded: frozenset[str]) -> list[str]:
    """What stands open, each in a sentence. Tables that are `unguarded` on purpose must be out of everybody's reach."""
    strangers = [DatabaseRole.WEB.value, DatabaseRole.TENANT.value]
    cursor.execute("SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", [strangers])
    if cursor.fetchone()[0] < len(strangers):
        return ["The roles of the service are missing."]
    cursor.execute(_UNGUARDED, {"strangers": strangers, "any": ALL})
    found = []
    for table, is_guarded, reached_by, is_partition in cursor.fetchall():
        if is_partition or table in unguarded:
            found += [f"{role} has rights on {table}, which no policy guards." for role in reached_by]
        elif not is_guarded:
            found.append(f"{table} has rows of orgs, and row-level security is not forced on it for everybody.")
    return found
