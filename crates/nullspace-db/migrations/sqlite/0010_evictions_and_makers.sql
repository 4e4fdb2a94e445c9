-- Evicted sandboxes, the keys that made grants, and the sealed tokens of sandboxes.

-- 1: the service paused the sandbox to free capacity on a full host. Its timeout goes on, and its owner's limit does not count it.
ALTER TABLE snapshots ADD COLUMN evicted INTEGER NOT NULL DEFAULT 0 CHECK (evicted IN (0, 1));

-- The key that made the grant; the grant ends with it. NULL: made before there was this column, or by no key. No reference: rows of
-- keys that are over go.
ALTER TABLE grants ADD COLUMN key_id TEXT;
CREATE INDEX grants_key ON grants (key_id) WHERE key_id IS NOT NULL;

-- The token for a sandbox's ports, sealed by the service; none once it has ended. It was a part of the configuration before, which
-- snapshots copy and ended rows keep.
ALTER TABLE sandboxes ADD COLUMN sealed_traffic_token BLOB;
UPDATE sandboxes SET sealed_traffic_token = unhex(json_extract(config, '$.sealed_traffic_token'))
WHERE ended_at IS NULL AND json_extract(config, '$.sealed_traffic_token') IS NOT NULL;
UPDATE sandboxes SET config = json_remove(config, '$.sealed_traffic_token')
WHERE json_extract(config, '$.sealed_traffic_token') IS NOT NULL;
UPDATE snapshots SET config = json_remove(config, '$.sealed_traffic_token')
WHERE json_extract(config, '$.sealed_traffic_token') IS NOT NULL;
