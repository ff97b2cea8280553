"""What the audit trail tells of: the one list of actions."""

from django.db.models import TextChoices


class Action(TextChoices):
    # Accounts
    SIGNED_IN = "signed in"
    SIGN_IN_FAILED = "sign-in failed"
    IDENTITY_CONNECTED = "identity connected"
    STAFF_CHANGED = "staff changed by the identity provider"
    # Reading, and being refused
    READ_USAGE = "read from outside: analytics:usage:read"
    READ_RELIABILITY = "read from outside: analytics:reliability:read"
    READ_EXPORTS = "read from outside: analytics:exports:read"
    READ_DOWNLOADS = "read from outside: analytics:exports:download"
    READ_ADMINISTRATION = "read from outside: admin"
    REFUSED = "refused"
    # Keys, members, settings
    KEY_MADE = "key made"
    KEY_REVOKED = "key revoked"
    MEMBER_ADDED = "member added"
    MEMBER_REMOVED = "member removed"
    ROLE_CHANGED = "role changed"
    INVITED = "invited"
    INVITATION_WITHDRAWN = "withdrew invitation"
    INVITATION_ACCEPTED = "accepted invitation"
    INVITATION_MET_ACCOUNT = "invitation met an account"
    ORG_CHANGED = "changed organisation"
    # Exports
    EXPORT_ASKED_FOR = "asked for export"
    EXPORT_DOWNLOADED = "downloaded export"
    EXPORT_CANCELLED = "cancelled export"
    BUCKET_ADDED = "bucket added"
    BUCKET_CHANGED = "bucket changed"
    BUCKET_REMOVED = "bucket removed"
    # The admin
    QUARANTINE_REPLAYED = "quarantine replayed"
    ADMIN_ADDED = "added in the admin"
    ADMIN_CHANGED = "changed in the admin"
    ADMIN_DELETED = "deleted in the admin"
