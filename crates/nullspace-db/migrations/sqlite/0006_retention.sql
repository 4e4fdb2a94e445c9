-- The log of a finished build as compressed runs of its entries, which replace the rows of build_log. An entry is in one of
-- the two tables, never in both. `kept` is the compressed run, or the name under which another store has it.
CREATE TABLE build_log_segments (
    build_id     TEXT    NOT NULL REFERENCES builds (id),
    -- Offsets of the first and last entry.
    first        INTEGER NOT NULL CHECK (first >= 0),
    last         INTEGER NOT NULL CHECK (last >= first),
    plain_bytes  INTEGER NOT NULL CHECK (plain_bytes > 0),
    stored_bytes INTEGER NOT NULL CHECK (stored_bytes > 0),
    kept         BLOB    NOT NULL,
    PRIMARY KEY (build_id, first)
) STRICT;

-- 1 when no row of build_log is left of a finished build.
ALTER TABLE builds ADD COLUMN log_compacted INTEGER NOT NULL DEFAULT 0 CHECK (log_compacted IN (0, 1));
CREATE INDEX builds_log_rows ON builds (finished_at) WHERE log_compacted = 0 AND finished_at IS NOT NULL;

-- Artifacts of builds whose rows were removed since the last start: what a crash left of their files is this database's.
CREATE TABLE removed_artifacts (
    number      INTEGER PRIMARY KEY NOT NULL,
    artifact_id TEXT    NOT NULL UNIQUE
) STRICT;

-- What retention looks for, and what refers to it.
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
