//! Lifecycle events for their owner.

use async_trait::async_trait;
use nullspace_api::{LifecycleEventListResponse, LifecycleOrder};
use nullspace_db::EventFilter;
use nullspace_service::{EventQuery, EventStream};
use nullspace_types::Caller;
use uuid::Uuid;

use super::follow;
use super::wire::{self, word};
use crate::Control;
use crate::error::{Error, Result, Stored};

/// Events of a page, when the query does not say.
const PAGE: u32 = 50;
/// Most events of a page.
const LONGEST_PAGE: u32 = 1000;

#[async_trait]
impl nullspace_service::Events for Control {
    async fn list_events(&self, caller: &Caller, query: EventQuery) -> Result<LifecycleEventListResponse> {
        let (offset, limit) = (query.offset, query.limit.unwrap_or(PAGE).clamp(1, LONGEST_PAGE));
        let mut filter = filter(&query)?;
        // One more tells whether there is a next page.
        filter.limit = limit + 1;
        let mut found = self.inner.db.list_events(caller, filter).await.stored()?;
        let has_more = found.len() > limit as usize;
        found.truncate(limit as usize);
        let events = found.into_iter().map(wire::event).collect::<Result<_>>()?;
        Ok(LifecycleEventListResponse { events, offset, limit, has_more })
    }

    async fn follow_events(
        &self,
        caller: &Caller,
        query: EventQuery,
        after: Option<String>,
        replay: u32,
    ) -> Result<EventStream> {
        let after =
            after.map(|id| Uuid::try_parse(&id).map_err(|_| Error::invalid("after_event_id is not an event's id")));
        let inner = &self.inner;
        let (db, followers) = (inner.db.clone(), &inner.lifecycle.followers);
        follow::follow(db, followers, caller, filter(&query)?, after.transpose()?, replay).await
    }
}

/// The query for the database.
fn filter(query: &EventQuery) -> Result<EventFilter> {
    fn id<T: std::str::FromStr>(name: &str, id: Option<&String>) -> Result<Option<T>> {
        let wrong = |_| Error::invalid(format!("{name} is not an id of that kind"));
        id.map(|id| id.parse().map_err(wrong)).transpose()
    }
    let about = match &query.about_sandbox {
        None => None,
        Some(id) => Some(id.parse().map_err(|_| Error::sandbox_not_found(id))?),
    };
    Ok(EventFilter {
        about,
        sandbox: id("sandbox_id", query.sandbox_id.as_ref())?,
        snapshot: id("snapshot_id", query.snapshot_id.as_ref())?,
        source: id("source_sandbox_id", query.source_sandbox_id.as_ref())?,
        target: id("target_sandbox_id", query.target_sandbox_id.as_ref())?,
        operation: query.operation.map(word),
        status: query.status.map(word),
        from: query.from,
        to: query.to,
        after: None,
        ascending: query.order == LifecycleOrder::Asc,
        offset: query.offset,
        limit: 1,
    })
}
