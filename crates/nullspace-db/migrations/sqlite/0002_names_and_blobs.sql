-- Older names of renamed templates. They resolve and take no builds.
CREATE TABLE template_aliases (
    namespace   TEXT    NOT NULL REFERENCES namespaces (slug),
    name        TEXT    NOT NULL,
    template_id TEXT    NOT NULL REFERENCES templates (id),
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;
CREATE INDEX template_aliases_template ON template_aliases (template_id);

-- Reserved names. As with keys, the token itself is nowhere.
CREATE TABLE name_claims (
    token_hash BLOB    PRIMARY KEY NOT NULL CHECK (length(token_hash) = 32),
    tenant_id  TEXT    NOT NULL REFERENCES tenants (id),
    namespace  TEXT    NOT NULL REFERENCES namespaces (slug),
    name       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    UNIQUE (namespace, name)
) STRICT;
CREATE INDEX name_claims_tenant ON name_claims (tenant_id);

-- Files of build contexts, each tenant's own. The bytes are under blobs/.
CREATE TABLE blobs (
    tenant_id    TEXT    NOT NULL REFERENCES tenants (id),
    sha256       TEXT    NOT NULL CHECK (length(sha256) = 64),
    bytes        INTEGER NOT NULL CHECK (bytes >= 0),
    stored_at    INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, sha256)
) STRICT;
CREATE INDEX blobs_used ON blobs (last_used_at);

-- The same key from the same tenant means the same request: it is answered with the build that is there.
ALTER TABLE builds ADD COLUMN idempotency_key TEXT;
ALTER TABLE builds ADD COLUMN idempotency_digest TEXT;
CREATE UNIQUE INDEX builds_idempotency ON builds (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
