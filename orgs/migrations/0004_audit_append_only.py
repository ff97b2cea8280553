"""The database keeps the audit trail as it was written: nobody changes, deletes or truncates it.

One function forgets what is old, in pieces. It tells the trigger so by a setting of its transaction; what is younger than
30 days (`AUDIT_KEPT_AT_LEAST`) the trigger keeps whatever that setting says. Locks the table for a moment.
"""

from django.db import migrations

FORWARDS = """
CREATE FUNCTION orgs_audit_keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND current_setting('analytics.audit_forgets', true) = 'on'
        AND OLD.at < now() - interval '30 days'
    THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'audit records are kept as they were written: no %', TG_OP USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER audit_keeps_rows BEFORE UPDATE OR DELETE ON orgs_auditrecord
    FOR EACH ROW EXECUTE FUNCTION orgs_audit_keep();
CREATE TRIGGER audit_keeps_all BEFORE TRUNCATE ON orgs_auditrecord
    FOR EACH STATEMENT EXECUTE FUNCTION orgs_audit_keep();
-- In sessions that replicate or restore, too.
ALTER TABLE orgs_auditrecord ENABLE ALWAYS TRIGGER audit_keeps_rows;
ALTER TABLE orgs_auditrecord ENABLE ALWAYS TRIGGER audit_keeps_all;

CREATE FUNCTION orgs_audit_forget(before timestamptz, at_most integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    deleted bigint;
BEGIN
    PERFORM set_config('analytics.audit_forgets', 'on', true);
    DELETE FROM orgs_auditrecord WHERE id IN (
        SELECT id FROM orgs_auditrecord WHERE at < least(before, now() - interval '30 days') LIMIT at_most
    );
    GET DIAGNOSTICS deleted = ROW_COUNT;
    PERFORM set_config('analytics.audit_forgets', 'off', true);
    RETURN deleted;
END $$;
"""

BACKWARDS = """
DROP TRIGGER audit_keeps_rows ON orgs_auditrecord;
DROP TRIGGER audit_keeps_all ON orgs_auditrecord;
DROP FUNCTION orgs_audit_forget(timestamptz, integer);
DROP FUNCTION orgs_audit_keep();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("orgs", "0003_audit_fields"),
    ]

    operations = [
        migrations.RunSQL(FORWARDS, BACKWARDS),
    ]
