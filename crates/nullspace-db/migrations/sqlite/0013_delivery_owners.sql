-- The host whose service sends the delivery, while it is in progress: at its next start that host takes back at once what a killed
-- service of its own held.
ALTER TABLE deliveries ADD COLUMN taken_by TEXT;
