-- Rights to log in to sandboxes. Certificates are not here. Rows end with the row of their sandbox, or go for new ones when expired.
CREATE TABLE ssh_accesses (
    id          TEXT    PRIMARY KEY NOT NULL,
    tenant_id   TEXT    NOT NULL REFERENCES tenants (id),
    sandbox_id  TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    -- The API key that made it. Its row may be gone: then the access is over.
    key_id      TEXT    NOT NULL,
    -- In the sandbox. NULL: its default user.
    user        TEXT,
    issued_at   INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX ssh_accesses_sandbox ON ssh_accesses (sandbox_id);
CREATE INDEX ssh_accesses_tenant ON ssh_accesses (tenant_id);
