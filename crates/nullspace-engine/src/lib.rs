//! The domain: plans, queue, build pipeline, templates, sandboxes.
