-- Warm pools of templates. Their machines are a host's, and in no table.
CREATE TABLE warm_pools (
    id                 TEXT    PRIMARY KEY NOT NULL,
    tenant_id          TEXT    NOT NULL REFERENCES tenants (id),
    state              TEXT    NOT NULL CHECK (state IN ('enabled', 'disabled', 'draining', 'deleted')),
    -- What the owner asked for.
    spec               TEXT    NOT NULL,
    max_ready          INTEGER NOT NULL CHECK (max_ready >= 0),
    -- The template's version now, and the one before.
    version            TEXT    NOT NULL,
    -- The artifact of the version now: it stays while the pool does. Its row may be gone with the template.
    artifact_id        TEXT    NOT NULL,
    created_at         INTEGER NOT NULL,
    -- Different after each change: a change of what was read before another change is refused.
    updated_at         INTEGER NOT NULL,
    enabled_at         INTEGER,
    disabled_at        INTEGER,
    drain_requested_at INTEGER,
    deleted_at         INTEGER,
    CHECK ((state = 'deleted') = (deleted_at IS NOT NULL))
) STRICT;
CREATE INDEX warm_pools_tenant ON warm_pools (tenant_id, id);
CREATE INDEX warm_pools_artifact ON warm_pools (artifact_id) WHERE deleted_at IS NULL;
CREATE INDEX warm_pools_deleted ON warm_pools (deleted_at) WHERE deleted_at IS NOT NULL;

-- The pool that a sandbox came from.
ALTER TABLE sandboxes ADD COLUMN warm_pool_id TEXT;
CREATE INDEX sandboxes_warm_pool ON sandboxes (warm_pool_id) WHERE warm_pool_id IS NOT NULL AND ended_at IS NULL;
