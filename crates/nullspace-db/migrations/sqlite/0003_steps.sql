-- What an unfinished build copies from: not collected until it is over. The generation is that of the moment when the
-- build was accepted.
CREATE TABLE blob_holds (
    build_id   TEXT    NOT NULL REFERENCES builds (id),
    tenant_id  TEXT    NOT NULL REFERENCES tenants (id),
    sha256     TEXT    NOT NULL,
    bytes      INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    PRIMARY KEY (build_id, sha256)
) STRICT;
CREATE INDEX blob_holds_blob ON blob_holds (tenant_id, sha256);

-- Rises when a build asks for the file to be taken anew: layers made of the earlier generation are not found any more.
ALTER TABLE blobs ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;

-- Key of everything that an artifact depends on: another build with the same key makes nothing of its own.
ALTER TABLE artifacts ADD COLUMN final_key TEXT;
CREATE INDEX artifacts_final ON artifacts (final_key) WHERE final_key IS NOT NULL;

-- What a layer was made by: of several with the same key, made by builds that reuse nothing, the newest is found.
ALTER TABLE rootfs ADD COLUMN layer_key TEXT;
CREATE INDEX rootfs_layer ON rootfs (layer_key) WHERE layer_key IS NOT NULL;
