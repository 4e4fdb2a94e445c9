//! What PostgreSQL says in another way than SQLite.
//!
//! The schema's first migration brings the functions of SQLite that statements use: `max` and `min` of two numbers, `iif`, `hex`
//! and `json_each`.

/// Keeps a comparison of the column after it from choosing the index: PostgreSQL has statistics, and chooses by them.
pub(super) const UNINDEXED: &str = "";

/// Keeps the row that a transaction has read as it is until its end.
macro_rules! kept {
    ($select:literal) => {
        concat!($select, " FOR UPDATE")
    };
}
pub(super) use kept;

/// Ids of due deliveries, at most `$2`, and `$3` of each webhook: each one's first before anybody's second. What a webhook has in
/// progress counts as its first ones. `$1` is now.
pub(super) const DUE: &str = "
    WITH waiting AS (SELECT DISTINCT webhook_id FROM deliveries WHERE due_at <= $1),
         turns AS (
             SELECT d.id AS id, d.due_at AS due_at,
                 row_number() OVER (PARTITION BY waiting.webhook_id ORDER BY d.due_at, d.id)
                 + (SELECT count(*) FROM deliveries p
                    WHERE p.webhook_id = waiting.webhook_id AND p.due_at > $1 AND p.delivery_status = 'in_progress') AS turn
             FROM waiting CROSS JOIN LATERAL (
                 SELECT x.id, x.due_at FROM deliveries x WHERE x.webhook_id = waiting.webhook_id AND x.due_at <= $1
                 ORDER BY x.due_at, x.id LIMIT least($2, $3)) AS d)
    SELECT id FROM turns WHERE turn <= $3 ORDER BY turn, due_at, id LIMIT $2";

/// Bytes of each table with its indexes and long values.
pub(super) const TABLE_SIZES: &str = "SELECT CAST(c.relname AS TEXT) AS name, pg_total_relation_size(c.oid) AS bytes
    FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = CAST(current_schema() AS REGNAMESPACE)";
