//! What SQLite says in another way than PostgreSQL.

/// Keeps a comparison of the column after it from choosing the index.
pub(super) const UNINDEXED: &str = "+";

/// Keeps the row that a transaction has read as it is until its end. A write transaction is the only one.
macro_rules! kept {
    ($select:literal) => {
        $select
    };
}
pub(super) use kept;

/// Ids of due deliveries, at most `$2`, and `$3` of each webhook: each one's first before anybody's second. What a webhook has in
/// progress counts as its first ones. `$1` is now.
pub(super) const DUE: &str = "
    WITH waiting AS (SELECT DISTINCT webhook_id FROM deliveries WHERE due_at <= $1),
         turns AS (
             SELECT d.id AS id, d.due_at AS due_at,
                 row_number() OVER (PARTITION BY d.webhook_id ORDER BY d.due_at, d.id)
                 + (SELECT count(*) FROM deliveries p
                    WHERE p.webhook_id = d.webhook_id AND p.due_at > $1 AND p.delivery_status = 'in_progress') AS turn
             FROM waiting JOIN deliveries d ON d.id IN (
                 SELECT x.id FROM deliveries x WHERE x.webhook_id = waiting.webhook_id AND x.due_at <= $1
                 ORDER BY x.due_at, x.id LIMIT min($2, $3)))
    SELECT id FROM turns WHERE turn <= $3 ORDER BY turn, due_at, id LIMIT $2";

/// Bytes of each table with its indexes.
pub(super) const TABLE_SIZES: &str = "SELECT m.tbl_name AS name, sum(s.pgsize) AS bytes
    FROM dbstat s JOIN sqlite_schema m ON m.name = s.name WHERE s.aggregate = TRUE GROUP BY m.tbl_name";
