-- The files of a snapshot are manifests in the chunk store: a JSON object, file name -> manifest. Artifacts without one are of
-- an older version: `folder` has their files. Several artifacts may have the same streams.
ALTER TABLE artifacts ADD COLUMN streams TEXT;
