//! `skip_cache`: bypasses the cache for the following steps.

use nullspace_api::TemplateSkipCacheStep;

use crate::encoder::Encoder;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::Effect;

impl Action for TemplateSkipCacheStep {
    fn check(&self, _check: &mut Check<'_>) {}

    fn key(&self, _key: &mut Encoder, _files: &Files<'_>) {
        // Says whether layers are looked up, not what is in them.
        let TemplateSkipCacheStep {} = self;
    }

    fn render(&self) -> Vec<Line> {
        Vec::new()
    }

    fn effect(&self) -> Effect<'_> {
        Effect::CacheBoundary
    }

    fn shown(&self) -> String {
        "(what follows is not taken from the cache)".to_owned()
    }
}
