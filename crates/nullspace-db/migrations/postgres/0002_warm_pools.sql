-- Warm pools of templates. Their machines are a host's, and in no table.
CREATE TABLE warm_pools (
    id                 TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id          TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    state              TEXT COLLATE "C" NOT NULL CHECK (state IN ('enabled', 'disabled', 'draining', 'deleted')),
    -- What the owner asked for.
    spec               TEXT COLLATE "C" NOT NULL,
    max_ready          BIGINT           NOT NULL CHECK (max_ready >= 0),
    -- The template's version now, and the one before.
    version            TEXT COLLATE "C" NOT NULL,
    -- The artifact of the version now: it stays while the pool does. Its row may be gone with the template.
    artifact_id        TEXT COLLATE "C" NOT NULL,
    created_at         BIGINT           NOT NULL,
    -- Different after each change: a change of what was read before another change is refused.
    updated_at         BIGINT           NOT NULL,
    enabled_at         BIGINT,
    disabled_at        BIGINT,
    drain_requested_at BIGINT,
    deleted_at         BIGINT,
    CHECK ((state = 'deleted') = (deleted_at IS NOT NULL))
);
CREATE INDEX warm_pools_tenant ON warm_pools (tenant_id, id);
CREATE INDEX warm_pools_artifact ON warm_pools (artifact_id) WHERE deleted_at IS NULL;
CREATE INDEX warm_pools_deleted ON warm_pools (deleted_at) WHERE deleted_at IS NOT NULL;

-- The pool that a sandbox came from.
ALTER TABLE sandboxes ADD COLUMN warm_pool_id TEXT COLLATE "C";
CREATE INDEX sandboxes_warm_pool ON sandboxes (warm_pool_id) WHERE warm_pool_id IS NOT NULL AND ended_at IS NULL;
