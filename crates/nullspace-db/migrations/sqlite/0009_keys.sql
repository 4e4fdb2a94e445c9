-- Scope, end and origin of API keys.

-- NULL: made before there were scopes; everything is allowed.
ALTER TABLE api_keys ADD COLUMN scope TEXT CHECK (scope IN ('full', 'read'));
ALTER TABLE api_keys ADD COLUMN expires_at INTEGER;
-- The key in whose place it came. That one's row may be gone.
ALTER TABLE api_keys ADD COLUMN rotated_from TEXT;
