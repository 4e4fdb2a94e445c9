//! Metadata and artifacts: what is durable.
