//! The host's end: an asynchronous client of the agent.
