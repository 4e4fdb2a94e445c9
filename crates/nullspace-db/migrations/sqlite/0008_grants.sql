-- Tokens for ports of sandboxes. The token itself is never here. Rows end with their sandbox, or a while after they expired.
CREATE TABLE grants (
    id               TEXT    PRIMARY KEY NOT NULL,
    tenant_id        TEXT    NOT NULL REFERENCES tenants (id),
    sandbox_id       TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port             INTEGER NOT NULL CHECK (port BETWEEN 1 AND 65535),
    kind             TEXT    NOT NULL CHECK (kind IN ('link', 'signed')),
    token_hash       BLOB    NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    issued_at        INTEGER NOT NULL,
    expires_at       INTEGER NOT NULL,
    revoked_at       INTEGER,
    updated_at       INTEGER NOT NULL,
    http_requests    INTEGER NOT NULL DEFAULT 0,
    websockets       INTEGER NOT NULL DEFAULT 0,
    bytes_in         INTEGER NOT NULL DEFAULT 0,
    bytes_out        INTEGER NOT NULL DEFAULT 0,
    first_used_at    INTEGER,
    last_used_at     INTEGER,
    last_error_code  TEXT,
    last_error_at    INTEGER,
    CHECK ((first_used_at IS NULL) = (last_used_at IS NULL)),
    CHECK ((last_error_code IS NULL) = (last_error_at IS NULL))
) STRICT;
CREATE INDEX grants_sandbox ON grants (sandbox_id, id);
CREATE INDEX grants_tenant ON grants (tenant_id);
CREATE INDEX grants_expires ON grants (expires_at);
