//! Searching in many files of a running sandbox, and replacing what was found: the fake's.

use async_trait::async_trait;
use nullspace_api::{ReplaceInFilesRequest, ReplaceResult, SearchMatch, SkippedFile};
use nullspace_service::{Error, FileAt, LiveSearch, Memory, Result, Warned};

use super::Live;

/// What is asked for is noted.
#[async_trait]
impl LiveSearch for Live {
    async fn find_in_files(&self, at: FileAt, pattern: String, _: &dyn Memory) -> Result<Warned<Vec<SearchMatch>>> {
        self.fake.call(format!("find_in_files {} {pattern}", self.shown(&at)));
        if pattern == "(" {
            return Err(Error::invalid("The pattern is not a regular expression."));
        }
        let value = vec![SearchMatch { file: "/w/a".into(), line: 3, content: "hello".into() }];
        Ok(Warned { value, warnings: vec!["truncated: there may be more".into()] })
    }

    async fn search_files(&self, at: FileAt, pattern: String, _: &dyn Memory) -> Result<Warned<Vec<String>>> {
        self.fake.call(format!("search_files {} {pattern}", self.shown(&at)));
        Ok(vec!["/w/a.txt".to_owned()].into())
    }

    async fn replace_in_files(&self, request: ReplaceInFilesRequest, _: &dyn Memory) -> Result<ReplaceResult> {
        self.fake.call(format!("{request:?}"));
        Ok(ReplaceResult {
            replacements: 2,
            files_modified: 1,
            files_skipped: 1,
            binary_files_skipped: 0,
            dry_run: request.dry_run,
            skipped: Some(vec![SkippedFile { path: "/none".into(), error: "It does not exist.".into() }]),
        })
    }
}
