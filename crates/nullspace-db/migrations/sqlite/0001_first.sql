-- Times are integers: microseconds since 1970-01-01 UTC. Documents are JSON text. Ids carry their prefix.

CREATE TABLE tenants (
    id          TEXT    PRIMARY KEY NOT NULL,
    name        TEXT    NOT NULL UNIQUE,
    created_at  INTEGER NOT NULL,
    -- Number of the lease that served this tenant last, over all tenants: the queue's turn order.
    last_served INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE namespaces (
    slug       TEXT    PRIMARY KEY NOT NULL,
    kind       TEXT    NOT NULL CHECK (kind IN ('system', 'user', 'deployment')),
    tenant_id  TEXT    NOT NULL REFERENCES tenants (id),
    is_default INTEGER NOT NULL CHECK (is_default IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX namespaces_default ON namespaces (tenant_id) WHERE is_default = 1;

-- The key itself is nowhere: only its SHA-256.
CREATE TABLE api_keys (
    id           TEXT    PRIMARY KEY NOT NULL,
    tenant_id    TEXT    NOT NULL REFERENCES tenants (id),
    label        TEXT    NOT NULL,
    shown        TEXT    NOT NULL,
    hash         BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER,
    revoked_at   INTEGER
) STRICT;
CREATE INDEX api_keys_tenant ON api_keys (tenant_id);

CREATE TABLE templates (
    id          TEXT    PRIMARY KEY NOT NULL,
    tenant_id   TEXT    NOT NULL REFERENCES tenants (id),
    namespace   TEXT    NOT NULL REFERENCES namespaces (slug),
    name        TEXT    NOT NULL,
    visibility  TEXT    NOT NULL CHECK (visibility IN ('private', 'public')),
    description TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    deleted_at  INTEGER
) STRICT;
-- A deleted template gives its name back and keeps its builds.
CREATE UNIQUE INDEX templates_name ON templates (namespace, name) WHERE deleted_at IS NULL;

CREATE TABLE builds (
    id                  TEXT    PRIMARY KEY NOT NULL,
    tenant_id           TEXT    NOT NULL REFERENCES tenants (id),
    template_id         TEXT    NOT NULL REFERENCES templates (id),
    artifact_id         TEXT    NOT NULL UNIQUE,
    status              TEXT    NOT NULL CHECK (status IN ('waiting', 'building', 'ready', 'error', 'cancelled')),
    name                TEXT    NOT NULL,
    namespace           TEXT    NOT NULL REFERENCES namespaces (slug),
    description         TEXT,
    tags                TEXT    NOT NULL,
    backend             TEXT    NOT NULL,
    source_type         TEXT    NOT NULL,
    definition          TEXT    NOT NULL,
    build_config        TEXT    NOT NULL,
    source_digest       TEXT,
    context_digest      TEXT,
    dockerfile_digest   TEXT,
    triggered_by        TEXT,
    retry_of            TEXT REFERENCES builds (id),
    original            TEXT REFERENCES builds (id),
    attempt             INTEGER NOT NULL CHECK (attempt >= 0 AND attempt <= max_attempts),
    max_attempts        INTEGER NOT NULL CHECK (max_attempts >= 1),
    created_at          INTEGER NOT NULL,
    updated_at          INTEGER NOT NULL,
    queued_at           INTEGER NOT NULL,
    started_at          INTEGER,
    finished_at         INTEGER,
    not_before          INTEGER,
    cancel_requested_at INTEGER,
    cancel_requested_by TEXT,
    cancel_reason       TEXT,
    failure_phase       TEXT,
    error               TEXT,
    error_detail        TEXT,
    cache_summary       TEXT,
    runtime_defaults    TEXT,
    oci_metadata        TEXT,
    -- Offset of the next log entry: rises in the transaction that appends, so offsets have no gaps.
    log_next            INTEGER NOT NULL,
    -- The fence. The epoch rises with every lease and never falls.
    lease_owner         TEXT,
    lease_expires_at    INTEGER,
    lease_epoch         INTEGER NOT NULL DEFAULT 0,
    CHECK ((status = 'building') = (lease_owner IS NOT NULL)),
    CHECK ((lease_owner IS NULL) = (lease_expires_at IS NULL)),
    CHECK ((status IN ('ready', 'error', 'cancelled')) = (finished_at IS NOT NULL))
) STRICT;
CREATE INDEX builds_unfinished ON builds (tenant_id, queued_at, id) WHERE finished_at IS NULL;
CREATE INDEX builds_tenant ON builds (tenant_id, id);
CREATE INDEX builds_template ON builds (template_id, id);

CREATE TABLE build_log (
    build_id TEXT    NOT NULL REFERENCES builds (id),
    position INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    body     TEXT    NOT NULL,
    PRIMARY KEY (build_id, position)
) STRICT;

CREATE TABLE template_tags (
    template_id TEXT    NOT NULL REFERENCES templates (id),
    tag         TEXT    NOT NULL,
    build_id    TEXT    NOT NULL REFERENCES builds (id),
    moved_at    INTEGER NOT NULL,
    PRIMARY KEY (template_id, tag)
) STRICT;
CREATE INDEX template_tags_build ON template_tags (build_id);

-- Root images that artifacts share. `file` is a name under rootfs/.
CREATE TABLE rootfs (
    key          TEXT    PRIMARY KEY NOT NULL,
    file         TEXT    NOT NULL UNIQUE,
    bytes        INTEGER NOT NULL,
    info         TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL
) STRICT;

-- `runtime` has the values of runtime environment variables, since sandboxes need them; the API shows
-- `runtime_defaults`, which has their keys. A purged artifact keeps its row, to answer what became of a build, and
-- nothing of value in it.
CREATE TABLE artifacts (
    id                   TEXT    PRIMARY KEY NOT NULL,
    -- A name under artifacts/.
    folder               TEXT    NOT NULL UNIQUE,
    tenant_id            TEXT    NOT NULL REFERENCES tenants (id),
    build_id             TEXT    NOT NULL UNIQUE REFERENCES builds (id),
    rootfs_key           TEXT    REFERENCES rootfs (key),
    disk_bytes           INTEGER NOT NULL,
    stored_bytes         INTEGER NOT NULL,
    compatibility        TEXT    NOT NULL,
    snapshot             TEXT    NOT NULL,
    runtime              TEXT    NOT NULL,
    created_at           INTEGER NOT NULL,
    retention_expires_at INTEGER,
    deleted_at           INTEGER,
    purged_at            INTEGER,
    CHECK ((rootfs_key IS NULL) = (purged_at IS NOT NULL)),
    CHECK (purged_at IS NULL OR deleted_at IS NOT NULL)
) STRICT;
CREATE INDEX artifacts_rootfs ON artifacts (rootfs_key);

-- What an unfinished build relies on: not collected until it is over.
CREATE TABLE rootfs_holds (
    rootfs_key TEXT NOT NULL REFERENCES rootfs (key),
    build_id   TEXT NOT NULL REFERENCES builds (id),
    PRIMARY KEY (rootfs_key, build_id)
) STRICT;
CREATE INDEX rootfs_holds_build ON rootfs_holds (build_id);

CREATE TABLE artifact_holds (
    artifact_id TEXT NOT NULL REFERENCES artifacts (id),
    build_id    TEXT NOT NULL REFERENCES builds (id),
    PRIMARY KEY (artifact_id, build_id)
) STRICT;
CREATE INDEX artifact_holds_build ON artifact_holds (build_id);

CREATE TABLE sandboxes (
    id                 TEXT    PRIMARY KEY NOT NULL,
    tenant_id          TEXT    NOT NULL REFERENCES tenants (id),
    artifact_id        TEXT    NOT NULL REFERENCES artifacts (id),
    template_ref       TEXT    NOT NULL,
    status             TEXT    NOT NULL CHECK (status IN ('creating', 'running', 'paused', 'destroyed', 'error')),
    reason             TEXT,
    config             TEXT    NOT NULL,
    metadata           TEXT    NOT NULL,
    created_at         INTEGER NOT NULL,
    started_at         INTEGER,
    timeout_at         INTEGER,
    ended_at           INTEGER,
    host               TEXT    NOT NULL,
    idempotency_key    TEXT,
    idempotency_digest TEXT,
    CHECK ((status IN ('destroyed', 'error')) = (ended_at IS NOT NULL))
) STRICT;
CREATE INDEX sandboxes_tenant ON sandboxes (tenant_id, id);
CREATE INDEX sandboxes_live ON sandboxes (artifact_id) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX sandboxes_idempotency ON sandboxes (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE settings (
    key        TEXT    PRIMARY KEY NOT NULL,
    value      TEXT    NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
