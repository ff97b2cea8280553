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

_DROP_ROLES = """
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY {roles} LOOP
        CONTINUE WHEN EXISTS (
            SELECT FROM pg_auth_members WHERE roleid = role::regrole AND member <> current_user::regrole
        );
        BEGIN
            EXECUTE format('DROP ROLE %I', role);
        EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
        END;
    END LOOP;
END $$;
"""


def begin(cursor: CursorWrapper) -> None:
    """Make the roles, and give staff and tasks what they have in every table, those to come included."""
    complaint, tasks = sql.Literal(_NO_RIGHT_TO_MAKE_ROLES), sql.Literal(DatabaseRole.TASKS.value)
    cursor.execute(sql.SQL(_ROLES).format(roles=_names(), complaint=complaint, tasks=tasks))
    _run(
        cursor,
        "GRANT {all} ON {tables} TO {both}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {all} ON TABLES TO {both}",
        # A number that comes next tells nobody anything.
        "GRANT USAGE ON SEQUENCE {sequences} TO {roles}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE ON SEQUENCES TO {roles}",
    )


def end(cursor: CursorWrapper) -> None:
    """Take it all back. Roles go where no other database of the server has them, and no login is to act in them."""
    cursor.execute("DROP FUNCTION orgs_tenant()")
    _run(
        cursor,
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} REVOKE ALL ON TABLES FROM {roles}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} REVOKE ALL ON SEQUENCES FROM {roles}",
        "REVOKE ALL ON {tables} FROM {roles}",
        "REVOKE ALL ON SEQUENCE {sequences} FROM {roles}",
        "REVOKE ALL ON SCHEMA {schema} FROM {roles}",
    )
    cursor.execute(sql.SQL(_DROP_ROLES).format(roles=_names()))


def _names() -> sql.Composable:
    """The roles as an array of text."""
    return sql.SQL("ARRAY[{}]").format(sql.SQL(", ").join(sql.Literal(role.value) for role in DatabaseRole))


def _run(cursor: CursorWrapper, *statements: str) -> None:
    """Statements about this schema and the roles: all of them, or `both` that see every org."""
    cursor.execute("SELECT current_schema()")
    parts = {
        "schema": sql.Identifier(cursor.fetchone()[0]),
        "tables": _ours(cursor, "r", "p"),
        "sequences": _ours(cursor, "S"),
        "all": sql.SQL(ALL),
        "roles": sql.SQL(", ").join(sql.Identifier(role) for role in DatabaseRole),
        "both": sql.SQL("{}, {}").format(sql.Identifier(DatabaseRole.STAFF), sql.Identifier(DatabaseRole.TASKS)),
    }
    for statement in statements:
        cursor.execute(sql.SQL(statement).format(**parts))


def _ours(cursor: CursorWrapper, *kinds: str) -> sql.Composable:
    """Names of this schema's relations of some kinds, but for those of extensions, which belong to others."""
    cursor.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = ANY(%s)"
        " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid"
        " AND d.deptype = 'e')",
        [list(kinds)],
    )
    return sql.SQL(", ").join(sql.Identifier(name) for (name,) in cursor.fetchall())


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


def pin(cursor: CursorWrapper, function: str) -> None:
    """Have a function of the owner's look in this schema alone, wherever it is called.

    Where nothing is said of it, everybody's own temporary schema comes first: a view that a caller names as one of the tables
    that the function reads would run as the owner.
    """
    cursor.execute("SELECT current_schema()")
    schema = sql.Identifier(cursor.fetchone()[0])
    cursor.execute(sql.SQL("ALTER FUNCTION {} SET search_path = {}, pg_temp").format(sql.SQL(function), schema))


def close_partitions(cursor: CursorWrapper) -> None:
    """Nobody but the owner reaches a partition but through its table, whose policies and privileges count there."""
    cursor.execute(
        "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    )
    if names := [sql.Identifier(name) for (name,) in cursor.fetchall()]:
        roles = sql.SQL(", ").join(sql.Identifier(role) for role in DatabaseRole)
        cursor.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(sql.SQL(", ").join(names), roles))


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
    array(SELECT name FROM unnest(%(everybody)s::text[]) AS s(name) WHERE
        has_table_privilege(name, c.oid, %(any)s) OR has_any_column_privilege(name, c.oid, 'SELECT, INSERT, UPDATE')
    ) AS reached_by,
    c.relispartition
FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND (
    c.relname = 'orgs_org' OR EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped AND a.attname IN ('org_id', 'org_ids')
    )
) ORDER BY 1
"""

# Functions that act as their owner and look for their tables wherever the caller says: see `pin`.
_UNPINNED = """
SELECT proname FROM pg_proc p
WHERE p.pronamespace = current_schema()::regnamespace AND p.prosecdef
    AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS setting WHERE setting ~ '^search_path=.*, pg_temp$')
    AND NOT EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    )
ORDER BY 1
"""


def gaps(cursor: CursorWrapper, *, unguarded: frozenset[str]) -> list[str]:
    """What stands open, each in a sentence. Tables that are `unguarded` on purpose must be out of everybody's reach."""
    everybody = [role.value for role in DatabaseRole]
    cursor.execute("SELECT count(*) FROM pg_roles WHERE rolname = ANY(%s)", [everybody])
    if cursor.fetchone()[0] < len(everybody):
        return ["The roles of the service are missing."]
    cursor.execute(_UNPINNED)
    found = [f"The function {name} looks in schemas that its caller chooses." for (name,) in cursor.fetchall()]
    cursor.execute(_UNGUARDED, {"everybody": everybody, "any": ALL})
    for table, is_guarded, reached_by, is_partition in cursor.fetchall():
        if is_partition or table in unguarded:
            too_many = [role for role in reached_by if is_partition or role in (DatabaseRole.WEB, DatabaseRole.TENANT)]
            found += [f"{role} has rights on {table}, which no policy guards." for role in too_many]
        elif not is_guarded and reached_by:  # a partition that was detached, to be dropped, is in nobody's reach
            found.append(f"{table} has rows of orgs, and row-level security is not forced on it for everybody.")
    return found
