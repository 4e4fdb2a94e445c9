//! `copy_items`: several copies in one step.

use nullspace_api::TemplateCopyItemsStep;

use crate::encoder::Encoder;
use crate::steps::action::Action;
use crate::steps::checks::Check;
use crate::steps::copies::{self, Copy};
use crate::steps::files::Files;
use crate::steps::line::Line;
use crate::steps::task::{Effect, Task};

impl Action for TemplateCopyItemsStep {
    fn check(&self, check: &mut Check<'_>) {
        check.count("items", self.items.len());
        for (index, item) in self.items.iter().enumerate() {
            check.within(&format!("items[{index}]")).copy(&Copy::of_item(item));
        }
    }

    fn key(&self, key: &mut Encoder, files: &Files<'_>) {
        let TemplateCopyItemsStep { items } = self;
        let copies: Vec<Copy<'_>> = items.iter().map(Copy::of_item).collect();
        copies::encode(&copies, key, files);
    }

    fn render(&self) -> Vec<Line> {
        self.items.iter().map(|item| Copy::of_item(item).line()).collect()
    }

    fn effect(&self) -> Effect<'_> {
        Effect::Tasks(self.items.iter().map(|item| Task::Copy(Copy::of_item(item))).collect())
    }
}
