-- The tables of ../sqlite, as of its 0013; what they and their columns mean is said there. Texts are compared by their bytes, as
-- SQLite compares them: COLLATE "C". Numbers, times (microseconds since 1970-01-01 UTC) and truth (0 or 1) are BIGINT.

-- The functions of SQLite that statements use.
CREATE FUNCTION max(one BIGINT, other BIGINT) RETURNS BIGINT LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE WHEN one < other THEN other ELSE one END;
CREATE FUNCTION min(one BIGINT, other BIGINT) RETURNS BIGINT LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN CASE WHEN one > other THEN other ELSE one END;
CREATE FUNCTION iif(condition BOOLEAN, one BIGINT, other BIGINT) RETURNS BIGINT LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN condition THEN one ELSE other END;
CREATE FUNCTION hex(bytes BYTEA) RETURNS TEXT LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN upper(encode(bytes, 'hex'));
-- The elements of an array, or the members of an object. A value that is a text or a number is that text or number.
CREATE FUNCTION json_each(document TEXT) RETURNS TABLE (key TEXT, value TEXT) LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE ROWS 100
    AS $$
        SELECT CAST(e.number - 1 AS TEXT), e.element
        FROM jsonb_array_elements_text(
            CASE WHEN jsonb_typeof(CAST(document AS JSONB)) = 'array' THEN CAST(document AS JSONB) ELSE '[]' END
        ) WITH ORDINALITY AS e (element, number)
        UNION ALL
        SELECT m.name, m.member
        FROM jsonb_each_text(
            CASE WHEN jsonb_typeof(CAST(document AS JSONB)) = 'object' THEN CAST(document AS JSONB) ELSE '{}' END
        ) AS m (name, member)
    $$;

CREATE TABLE tenants (
    id          TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    name        TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at  BIGINT           NOT NULL,
    -- Number of the lease that served this tenant last, over all tenants: the queue's turn order.
    last_served BIGINT           NOT NULL DEFAULT 0
);

CREATE TABLE namespaces (
    slug       TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    kind       TEXT COLLATE "C" NOT NULL CHECK (kind IN ('system', 'user', 'deployment')),
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    is_default BIGINT           NOT NULL CHECK (is_default IN (0, 1)),
    created_at BIGINT           NOT NULL
);

CREATE TABLE api_keys (
    id           TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id    TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    label        TEXT COLLATE "C" NOT NULL,
    shown        TEXT COLLATE "C" NOT NULL,
    hash         BYTEA            NOT NULL UNIQUE CHECK (length(hash) = 32),
    created_at   BIGINT           NOT NULL,
    last_used_at BIGINT,
    revoked_at   BIGINT,
    scope        TEXT COLLATE "C" CHECK (scope IN ('full', 'read')),
    expires_at   BIGINT,
    rotated_from TEXT COLLATE "C"
);

CREATE TABLE templates (
    id          TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id   TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    namespace   TEXT COLLATE "C" NOT NULL REFERENCES namespaces (slug),
    name        TEXT COLLATE "C" NOT NULL,
    visibility  TEXT COLLATE "C" NOT NULL CHECK (visibility IN ('private', 'public')),
    description TEXT COLLATE "C" NOT NULL,
    created_at  BIGINT           NOT NULL,
    deleted_at  BIGINT
);

CREATE TABLE builds (
    id                  TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id           TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    template_id         TEXT COLLATE "C" NOT NULL REFERENCES templates (id),
    artifact_id         TEXT COLLATE "C" NOT NULL UNIQUE,
    status              TEXT COLLATE "C" NOT NULL CHECK (status IN ('waiting', 'building', 'ready', 'error', 'cancelled')),
    name                TEXT COLLATE "C" NOT NULL,
    namespace           TEXT COLLATE "C" NOT NULL REFERENCES namespaces (slug),
    description         TEXT COLLATE "C",
    tags                TEXT COLLATE "C" NOT NULL,
    backend             TEXT COLLATE "C" NOT NULL,
    source_type         TEXT COLLATE "C" NOT NULL,
    definition          TEXT COLLATE "C" NOT NULL,
    build_config        TEXT COLLATE "C" NOT NULL,
    source_digest       TEXT COLLATE "C",
    context_digest      TEXT COLLATE "C",
    dockerfile_digest   TEXT COLLATE "C",
    triggered_by        TEXT COLLATE "C",
    retry_of            TEXT COLLATE "C" REFERENCES builds (id),
    original            TEXT COLLATE "C" REFERENCES builds (id),
    attempt             BIGINT           NOT NULL CHECK (attempt >= 0 AND attempt <= max_attempts),
    max_attempts        BIGINT           NOT NULL CHECK (max_attempts >= 1),
    created_at          BIGINT           NOT NULL,
    updated_at          BIGINT           NOT NULL,
    queued_at           BIGINT           NOT NULL,
    started_at          BIGINT,
    finished_at         BIGINT,
    not_before          BIGINT,
    cancel_requested_at BIGINT,
    cancel_requested_by TEXT COLLATE "C",
    cancel_reason       TEXT COLLATE "C",
    failure_phase       TEXT COLLATE "C",
    error               TEXT COLLATE "C",
    error_detail        TEXT COLLATE "C",
    cache_summary       TEXT COLLATE "C",
    runtime_defaults    TEXT COLLATE "C",
    oci_metadata        TEXT COLLATE "C",
    -- Offset of the next log entry: rises in the transaction that appends, so offsets have no gaps.
    log_next            BIGINT           NOT NULL,
    -- The fence. The epoch rises with every lease and never falls.
    lease_owner         TEXT COLLATE "C",
    lease_expires_at    BIGINT,
    lease_epoch         BIGINT           NOT NULL DEFAULT 0,
    idempotency_key     TEXT COLLATE "C",
    idempotency_digest  TEXT COLLATE "C",
    log_compacted       BIGINT           NOT NULL DEFAULT 0 CHECK (log_compacted IN (0, 1)),
    CHECK ((status = 'building') = (lease_owner IS NOT NULL)),
    CHECK ((lease_owner IS NULL) = (lease_expires_at IS NULL)),
    CHECK ((status IN ('ready', 'error', 'cancelled')) = (finished_at IS NOT NULL))
);

CREATE TABLE build_log (
    build_id TEXT COLLATE "C" NOT NULL REFERENCES builds (id),
    position BIGINT           NOT NULL,
    at       BIGINT           NOT NULL,
    body     TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (build_id, position)
);

CREATE TABLE template_tags (
    template_id TEXT COLLATE "C" NOT NULL REFERENCES templates (id),
    tag         TEXT COLLATE "C" NOT NULL,
    build_id    TEXT COLLATE "C" NOT NULL REFERENCES builds (id),
    moved_at    BIGINT           NOT NULL,
    PRIMARY KEY (template_id, tag)
);

CREATE TABLE rootfs (
    key          TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    file         TEXT COLLATE "C" NOT NULL UNIQUE,
    bytes        BIGINT           NOT NULL,
    info         TEXT COLLATE "C" NOT NULL,
    created_at   BIGINT           NOT NULL,
    last_used_at BIGINT           NOT NULL,
    layer_key    TEXT COLLATE "C",
    manifest     TEXT COLLATE "C"
);

CREATE TABLE artifacts (
    id                   TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    -- A name under artifacts/.
    folder               TEXT COLLATE "C" NOT NULL UNIQUE,
    tenant_id            TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    build_id             TEXT COLLATE "C" NOT NULL UNIQUE REFERENCES builds (id),
    rootfs_key           TEXT COLLATE "C" REFERENCES rootfs (key),
    disk_bytes           BIGINT           NOT NULL,
    stored_bytes         BIGINT           NOT NULL,
    compatibility        TEXT COLLATE "C" NOT NULL,
    snapshot             TEXT COLLATE "C" NOT NULL,
    runtime              TEXT COLLATE "C" NOT NULL,
    created_at           BIGINT           NOT NULL,
    retention_expires_at BIGINT,
    deleted_at           BIGINT,
    purged_at            BIGINT,
    final_key            TEXT COLLATE "C",
    streams              TEXT COLLATE "C",
    lost_at              BIGINT,
    CHECK ((rootfs_key IS NULL) = (purged_at IS NOT NULL)),
    CHECK (purged_at IS NULL OR deleted_at IS NOT NULL)
);

CREATE TABLE rootfs_holds (
    rootfs_key TEXT COLLATE "C" NOT NULL REFERENCES rootfs (key),
    build_id   TEXT COLLATE "C" NOT NULL REFERENCES builds (id),
    PRIMARY KEY (rootfs_key, build_id)
);

CREATE TABLE artifact_holds (
    artifact_id TEXT COLLATE "C" NOT NULL REFERENCES artifacts (id),
    build_id    TEXT COLLATE "C" NOT NULL REFERENCES builds (id),
    PRIMARY KEY (artifact_id, build_id)
);

CREATE TABLE sandboxes (
    id                   TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id            TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    artifact_id          TEXT COLLATE "C" NOT NULL REFERENCES artifacts (id),
    template_ref         TEXT COLLATE "C" NOT NULL,
    status               TEXT COLLATE "C" NOT NULL CHECK (status IN ('creating', 'running', 'paused', 'destroyed', 'error')),
    reason               TEXT COLLATE "C",
    config               TEXT COLLATE "C" NOT NULL,
    metadata             TEXT COLLATE "C" NOT NULL,
    created_at           BIGINT           NOT NULL,
    started_at           BIGINT,
    timeout_at           BIGINT,
    ended_at             BIGINT,
    host                 TEXT COLLATE "C" NOT NULL,
    idempotency_key      TEXT COLLATE "C",
    idempotency_digest   TEXT COLLATE "C",
    sealed_envs          BYTEA,
    snapshot_id          TEXT COLLATE "C",
    last_active_at       BIGINT,
    continues            BIGINT           NOT NULL DEFAULT 0 CHECK (continues IN (0, 1)),
    continue_ms          BIGINT           CHECK (continue_ms >= 0),
    sealed_traffic_token BYTEA,
    CHECK ((status IN ('destroyed', 'error')) = (ended_at IS NOT NULL))
);

CREATE TABLE settings (
    key        TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    value      TEXT COLLATE "C" NOT NULL,
    updated_at BIGINT           NOT NULL
);

CREATE TABLE template_aliases (
    namespace   TEXT COLLATE "C" NOT NULL REFERENCES namespaces (slug),
    name        TEXT COLLATE "C" NOT NULL,
    template_id TEXT COLLATE "C" NOT NULL REFERENCES templates (id),
    created_at  BIGINT           NOT NULL,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE name_claims (
    token_hash BYTEA            PRIMARY KEY NOT NULL CHECK (length(token_hash) = 32),
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    namespace  TEXT COLLATE "C" NOT NULL REFERENCES namespaces (slug),
    name       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT           NOT NULL,
    expires_at BIGINT           NOT NULL,
    UNIQUE (namespace, name)
);

CREATE TABLE blobs (
    tenant_id    TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    sha256       TEXT COLLATE "C" NOT NULL CHECK (length(sha256) = 64),
    bytes        BIGINT           NOT NULL CHECK (bytes >= 0),
    stored_at    BIGINT           NOT NULL,
    last_used_at BIGINT           NOT NULL,
    generation   BIGINT           NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, sha256)
);

CREATE TABLE blob_holds (
    build_id   TEXT COLLATE "C" NOT NULL REFERENCES builds (id),
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    sha256     TEXT COLLATE "C" NOT NULL,
    bytes      BIGINT           NOT NULL,
    generation BIGINT           NOT NULL,
    PRIMARY KEY (build_id, sha256)
);

CREATE TABLE build_log_segments (
    build_id     TEXT COLLATE "C" NOT NULL REFERENCES builds (id),
    -- Offsets of the first and last entry.
    first        BIGINT           NOT NULL CHECK (first >= 0),
    last         BIGINT           NOT NULL CHECK (last >= first),
    plain_bytes  BIGINT           NOT NULL CHECK (plain_bytes > 0),
    stored_bytes BIGINT           NOT NULL CHECK (stored_bytes > 0),
    kept         BYTEA            NOT NULL,
    PRIMARY KEY (build_id, first)
);

CREATE TABLE removed_artifacts (
    number      BIGINT           GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    artifact_id TEXT COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE snapshots (
    id                 TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id          TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    kind               TEXT COLLATE "C" NOT NULL CHECK (kind IN ('pause', 'kept')),
    sandbox_id         TEXT COLLATE "C" NOT NULL,
    artifact_id        TEXT COLLATE "C" NOT NULL REFERENCES artifacts (id),
    folder             TEXT COLLATE "C" NOT NULL UNIQUE,
    -- A JSON object, file name -> manifest, as of artifacts.
    streams            TEXT COLLATE "C" NOT NULL,
    summary            TEXT COLLATE "C" NOT NULL,
    size_bytes         BIGINT           NOT NULL CHECK (size_bytes >= 0),
    stored_bytes       BIGINT           NOT NULL CHECK (stored_bytes >= 0),
    metadata           TEXT COLLATE "C" NOT NULL,
    -- Of the sandbox, when it was taken.
    template_ref       TEXT COLLATE "C" NOT NULL,
    config             TEXT COLLATE "C" NOT NULL,
    sandbox_metadata   TEXT COLLATE "C" NOT NULL,
    sealed_envs        BYTEA,
    created_at         BIGINT           NOT NULL,
    ended_at           BIGINT,
    idempotency_key    TEXT COLLATE "C",
    idempotency_digest TEXT COLLATE "C",
    evicted            BIGINT           NOT NULL DEFAULT 0 CHECK (evicted IN (0, 1))
);

CREATE TABLE events (
    id            TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id     TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    occurred_at   BIGINT           NOT NULL,
    operation     TEXT COLLATE "C" NOT NULL,
    status        TEXT COLLATE "C" NOT NULL,
    actor         TEXT COLLATE "C" NOT NULL,
    sandbox_id    TEXT COLLATE "C",
    snapshot_id   TEXT COLLATE "C",
    source_id     TEXT COLLATE "C",
    target_id     TEXT COLLATE "C",
    reason        TEXT COLLATE "C",
    error_code    TEXT COLLATE "C",
    error_message TEXT COLLATE "C",
    metadata      TEXT COLLATE "C" NOT NULL,
    CHECK ((error_code IS NULL) = (error_message IS NULL))
);

CREATE TABLE webhooks (
    id            TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id     TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    url           TEXT COLLATE "C" NOT NULL,
    operations    TEXT COLLATE "C" NOT NULL,
    sealed_secret BYTEA            NOT NULL,
    enabled       BIGINT           NOT NULL CHECK (enabled IN (0, 1)),
    created_at    BIGINT           NOT NULL,
    updated_at    BIGINT           NOT NULL,
    -- The newest attempt of all its deliveries.
    last_at       BIGINT,
    last_status   TEXT COLLATE "C",
    last_error    TEXT COLLATE "C",
    deleted_at    BIGINT,
    CHECK ((last_at IS NULL) = (last_status IS NULL))
);

CREATE TABLE deliveries (
    id                   TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    webhook_id           TEXT COLLATE "C" NOT NULL REFERENCES webhooks (id),
    event_id             TEXT COLLATE "C" NOT NULL REFERENCES events (id),
    delivery_status      TEXT COLLATE "C" NOT NULL
        CHECK (delivery_status IN ('queued', 'in_progress', 'succeeded', 'dead_letter')),
    attempts             BIGINT           NOT NULL DEFAULT 0,
    created_at           BIGINT           NOT NULL,
    -- The next attempt of a queued one; the end of the lease of one in progress.
    due_at               BIGINT,
    last_attempt_at      BIGINT,
    last_response_status BIGINT,
    last_error           TEXT COLLATE "C",
    taken_by             TEXT COLLATE "C",
    UNIQUE (event_id, webhook_id),
    CHECK ((delivery_status IN ('queued', 'in_progress')) = (due_at IS NOT NULL))
);

CREATE TABLE attempts (
    id              TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    delivery_id     TEXT COLLATE "C" NOT NULL REFERENCES deliveries (id),
    number          BIGINT           NOT NULL CHECK (number >= 1),
    at              BIGINT           NOT NULL,
    duration_ms     BIGINT           NOT NULL,
    response_status BIGINT,
    error_code      TEXT COLLATE "C",
    error_message   TEXT COLLATE "C",
    UNIQUE (delivery_id, number),
    CHECK ((error_code IS NULL) = (error_message IS NULL))
);

CREATE TABLE grants (
    id              TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id       TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    sandbox_id      TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port            BIGINT           NOT NULL CHECK (port BETWEEN 1 AND 65535),
    kind            TEXT COLLATE "C" NOT NULL CHECK (kind IN ('link', 'signed')),
    token_hash      BYTEA            NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    issued_at       BIGINT           NOT NULL,
    expires_at      BIGINT           NOT NULL,
    revoked_at      BIGINT,
    updated_at      BIGINT           NOT NULL,
    http_requests   BIGINT           NOT NULL DEFAULT 0,
    websockets      BIGINT           NOT NULL DEFAULT 0,
    bytes_in        BIGINT           NOT NULL DEFAULT 0,
    bytes_out       BIGINT           NOT NULL DEFAULT 0,
    first_used_at   BIGINT,
    last_used_at    BIGINT,
    last_error_code TEXT COLLATE "C",
    last_error_at   BIGINT,
    key_id          TEXT COLLATE "C",
    CHECK ((first_used_at IS NULL) = (last_used_at IS NULL)),
    CHECK ((last_error_code IS NULL) = (last_error_at IS NULL))
);

CREATE TABLE ssh_accesses (
    id         TEXT COLLATE "C" PRIMARY KEY NOT NULL,
    tenant_id  TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    sandbox_id TEXT COLLATE "C" NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    -- The API key that made it. Its row may be gone: then the access is over.
    key_id     TEXT COLLATE "C" NOT NULL,
    -- In the sandbox. NULL: its default user.
    "user"     TEXT COLLATE "C",
    issued_at  BIGINT           NOT NULL,
    expires_at BIGINT           NOT NULL
);

CREATE UNIQUE INDEX namespaces_default ON namespaces (tenant_id) WHERE is_default = 1;
CREATE INDEX api_keys_tenant ON api_keys (tenant_id);
CREATE UNIQUE INDEX templates_name ON templates (namespace, name) WHERE deleted_at IS NULL;
CREATE INDEX builds_unfinished ON builds (tenant_id, queued_at, id) WHERE finished_at IS NULL;
CREATE INDEX builds_tenant ON builds (tenant_id, id);
CREATE INDEX builds_template ON builds (template_id, id);
CREATE INDEX template_tags_build ON template_tags (build_id);
CREATE INDEX artifacts_rootfs ON artifacts (rootfs_key);
CREATE INDEX rootfs_holds_build ON rootfs_holds (build_id);
CREATE INDEX artifact_holds_build ON artifact_holds (build_id);
CREATE INDEX sandboxes_tenant ON sandboxes (tenant_id, id);
CREATE INDEX sandboxes_live ON sandboxes (artifact_id) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX sandboxes_idempotency ON sandboxes (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX template_aliases_template ON template_aliases (template_id);
CREATE INDEX name_claims_tenant ON name_claims (tenant_id);
CREATE INDEX blobs_used ON blobs (last_used_at);
CREATE UNIQUE INDEX builds_idempotency ON builds (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX blob_holds_blob ON blob_holds (tenant_id, sha256);
CREATE INDEX artifacts_final ON artifacts (final_key) WHERE final_key IS NOT NULL;
CREATE INDEX rootfs_layer ON rootfs (layer_key) WHERE layer_key IS NOT NULL;
CREATE INDEX builds_log_rows ON builds (finished_at) WHERE log_compacted = 0 AND finished_at IS NOT NULL;
CREATE INDEX builds_failed ON builds (finished_at) WHERE status IN ('error', 'cancelled');
CREATE INDEX builds_retry_of ON builds (retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX builds_original ON builds (original) WHERE original IS NOT NULL;
CREATE INDEX builds_keys ON builds (finished_at) WHERE idempotency_key IS NOT NULL;
CREATE INDEX artifacts_purged ON artifacts (purged_at) WHERE purged_at IS NOT NULL;
CREATE INDEX sandboxes_ended ON sandboxes (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX sandboxes_artifact ON sandboxes (artifact_id);
CREATE INDEX sandboxes_keys ON sandboxes (ended_at) WHERE idempotency_key IS NOT NULL;
CREATE INDEX templates_deleted ON templates (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX name_claims_expire ON name_claims (expires_at);
CREATE INDEX snapshots_tenant ON snapshots (tenant_id, id) WHERE ended_at IS NULL;
CREATE INDEX snapshots_sandbox ON snapshots (sandbox_id, id) WHERE ended_at IS NULL;
CREATE INDEX snapshots_artifact ON snapshots (artifact_id);
CREATE INDEX snapshots_ended ON snapshots (ended_at) WHERE ended_at IS NOT NULL;
CREATE UNIQUE INDEX snapshots_idempotency ON snapshots (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX snapshots_keys ON snapshots (created_at) WHERE idempotency_key IS NOT NULL;
CREATE INDEX sandboxes_starting ON sandboxes (snapshot_id) WHERE status = 'creating' AND snapshot_id IS NOT NULL;
CREATE INDEX sandboxes_paused_due ON sandboxes (host, timeout_at) WHERE status = 'paused' AND timeout_at IS NOT NULL;
CREATE INDEX sandboxes_paused ON sandboxes (tenant_id) WHERE status = 'paused';
CREATE INDEX sandboxes_continue ON sandboxes (host, created_at, id) WHERE continues = 1;
CREATE INDEX sandboxes_host ON sandboxes (host) WHERE ended_at IS NULL;
CREATE INDEX events_tenant ON events (tenant_id, id);
CREATE INDEX events_sandbox ON events (sandbox_id, id) WHERE sandbox_id IS NOT NULL;
CREATE INDEX events_snapshot ON events (snapshot_id, id) WHERE snapshot_id IS NOT NULL;
CREATE INDEX events_source ON events (source_id, id) WHERE source_id IS NOT NULL;
CREATE INDEX events_target ON events (target_id, id) WHERE target_id IS NOT NULL;
CREATE INDEX events_occurred ON events (occurred_at);
CREATE INDEX webhooks_tenant ON webhooks (tenant_id, id) WHERE deleted_at IS NULL;
CREATE INDEX webhooks_deleted ON webhooks (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX deliveries_webhook ON deliveries (webhook_id, id);
CREATE INDEX deliveries_due ON deliveries (due_at, webhook_id) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_turn ON deliveries (webhook_id, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX grants_sandbox ON grants (sandbox_id, id);
CREATE INDEX grants_tenant ON grants (tenant_id);
CREATE INDEX grants_expires ON grants (expires_at);
CREATE INDEX grants_key ON grants (key_id) WHERE key_id IS NOT NULL;
CREATE INDEX ssh_accesses_sandbox ON ssh_accesses (sandbox_id);
CREATE INDEX ssh_accesses_tenant ON ssh_accesses (tenant_id);
