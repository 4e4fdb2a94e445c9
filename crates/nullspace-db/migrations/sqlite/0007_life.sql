-- Snapshots of sandboxes. A row stays until its files are removed, and keeps the artifact with its root image until then.
-- `sandbox_id` is no reference: a snapshot may outlive the row of the sandbox that it was taken of.
CREATE TABLE snapshots (
    id                 TEXT    PRIMARY KEY NOT NULL,
    tenant_id          TEXT    NOT NULL REFERENCES tenants (id),
    kind               TEXT    NOT NULL CHECK (kind IN ('pause', 'kept')),
    sandbox_id         TEXT    NOT NULL,
    artifact_id        TEXT    NOT NULL REFERENCES artifacts (id),
    folder             TEXT    NOT NULL UNIQUE,
    -- A JSON object, file name -> manifest, as of artifacts.
    streams            TEXT    NOT NULL,
    summary            TEXT    NOT NULL,
    size_bytes         INTEGER NOT NULL CHECK (size_bytes >= 0),
    stored_bytes       INTEGER NOT NULL CHECK (stored_bytes >= 0),
    metadata           TEXT    NOT NULL,
    -- Of the sandbox, when it was taken.
    template_ref       TEXT    NOT NULL,
    config             TEXT    NOT NULL,
    sandbox_metadata   TEXT    NOT NULL,
    sealed_envs        BLOB,
    created_at         INTEGER NOT NULL,
    ended_at           INTEGER,
    idempotency_key    TEXT,
    idempotency_digest TEXT
) STRICT;
CREATE INDEX snapshots_tenant ON snapshots (tenant_id, id) WHERE ended_at IS NULL;
CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, id) WHERE ended_at IS NULL;
CREATE INDEX snapshots_artifact ON snapshots (artifact_id);
CREATE INDEX snapshots_ended ON snapshots (ended_at) WHERE ended_at IS NOT NULL;
CREATE UNIQUE INDEX snapshots_idempotency ON snapshots (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX snapshots_keys ON snapshots (created_at) WHERE idempotency_key IS NOT NULL;

-- Variables of a sandbox, sealed by the service; none once it has ended.
ALTER TABLE sandboxes ADD COLUMN sealed_envs BLOB;
-- The snapshot that a paused sandbox is stored in, or that another one was made from. No reference: the row of a snapshot goes
-- with its files.
ALTER TABLE sandboxes ADD COLUMN snapshot_id TEXT;
ALTER TABLE sandboxes ADD COLUMN last_active_at INTEGER;
-- 1: it runs again at the next start of the service, with so many milliseconds left of its timeout.
ALTER TABLE sandboxes ADD COLUMN continues INTEGER NOT NULL DEFAULT 0 CHECK (continues IN (0, 1));
ALTER TABLE sandboxes ADD COLUMN continue_ms INTEGER CHECK (continue_ms >= 0);
CREATE INDEX sandboxes_starting ON sandboxes (snapshot_id) WHERE status = 'creating' AND snapshot_id IS NOT NULL;
CREATE INDEX sandboxes_paused_due ON sandboxes (host, timeout_at) WHERE status = 'paused' AND timeout_at IS NOT NULL;
CREATE INDEX sandboxes_paused ON sandboxes (tenant_id) WHERE status = 'paused';
CREATE INDEX sandboxes_continue ON sandboxes (host, created_at, id) WHERE continues = 1;
CREATE INDEX sandboxes_host ON sandboxes (host) WHERE ended_at IS NULL;

-- Set when the files of a deleted artifact are lost, and the root image is still under snapshots of sandboxes.
ALTER TABLE artifacts ADD COLUMN lost_at INTEGER;

-- Lifecycle events. Ids are UUIDs of version 7, so they ascend with time. They name sandboxes and snapshots whose rows may be gone.
CREATE TABLE events (
    id            TEXT    PRIMARY KEY NOT NULL,
    tenant_id     TEXT    NOT NULL REFERENCES tenants (id),
    occurred_at   INTEGER NOT NULL,
    operation     TEXT    NOT NULL,
    status        TEXT    NOT NULL,
    actor         TEXT    NOT NULL,
    sandbox_id    TEXT,
    snapshot_id   TEXT,
    source_id     TEXT,
    target_id     TEXT,
    reason        TEXT,
    error_code    TEXT,
    error_message TEXT,
    metadata      TEXT    NOT NULL,
    CHECK ((error_code IS NULL) = (error_message IS NULL))
) STRICT;
CREATE INDEX events_tenant ON events (tenant_id, id);
CREATE INDEX events_sandbox ON events (sandbox_id, id) WHERE sandbox_id IS NOT NULL;
CREATE INDEX events_snapshot ON events (snapshot_id, id) WHERE snapshot_id IS NOT NULL;
CREATE INDEX events_source ON events (source_id, id) WHERE source_id IS NOT NULL;
CREATE INDEX events_target ON events (target_id, id) WHERE target_id IS NOT NULL;
CREATE INDEX events_occurred ON events (occurred_at);

-- Receivers of events. A deleted one is seen by nobody, and goes when its deliveries are removed.
CREATE TABLE webhooks (
    id            TEXT    PRIMARY KEY NOT NULL,
    tenant_id     TEXT    NOT NULL REFERENCES tenants (id),
    url           TEXT    NOT NULL,
    operations    TEXT    NOT NULL,
    sealed_secret BLOB    NOT NULL,
    enabled       INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    -- The newest attempt of all its deliveries.
    last_at       INTEGER,
    last_status   TEXT,
    last_error    TEXT,
    deleted_at    INTEGER,
    CHECK ((last_at IS NULL) = (last_status IS NULL))
) STRICT;
CREATE INDEX webhooks_tenant ON webhooks (tenant_id, id) WHERE deleted_at IS NULL;
CREATE INDEX webhooks_deleted ON webhooks (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE deliveries (
    id                   TEXT    PRIMARY KEY NOT NULL,
    webhook_id           TEXT    NOT NULL REFERENCES webhooks (id),
    event_id             TEXT    NOT NULL REFERENCES events (id),
    delivery_status      TEXT    NOT NULL
        CHECK (delivery_status IN ('queued', 'in_progress', 'succeeded', 'dead_letter')),
    attempts             INTEGER NOT NULL DEFAULT 0,
    created_at           INTEGER NOT NULL,
    -- The next attempt of a queued one; the end of the lease of one in progress.
    due_at               INTEGER,
    last_attempt_at      INTEGER,
    last_response_status INTEGER,
    last_error           TEXT,
    UNIQUE (event_id, webhook_id),
    CHECK ((delivery_status IN ('queued', 'in_progress')) = (due_at IS NOT NULL))
) STRICT;
CREATE INDEX deliveries_webhook ON deliveries (webhook_id, id);
CREATE INDEX deliveries_due ON deliveries (due_at, webhook_id) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_turn ON deliveries (webhook_id, due_at, id) WHERE due_at IS NOT NULL;

CREATE TABLE attempts (
    id              TEXT    PRIMARY KEY NOT NULL,
    delivery_id     TEXT    NOT NULL REFERENCES deliveries (id),
    number          INTEGER NOT NULL CHECK (number >= 1),
    at              INTEGER NOT NULL,
    duration_ms     INTEGER NOT NULL,
    response_status INTEGER,
    error_code      TEXT,
    error_message   TEXT,
    UNIQUE (delivery_id, number),
    CHECK ((error_code IS NULL) = (error_message IS NULL))
) STRICT;
