-- Root images are manifests in the chunk store; `file` is where a raw copy lies when there is one. Those without a
-- manifest are of an older version, and are files only.
ALTER TABLE rootfs ADD COLUMN manifest TEXT;
