//! Searching in many files of a running sandbox, and replacing what was found: the guest's agent does it, as the request's user.

use async_trait::async_trait;
use nullspace_api::{ReplaceInFilesRequest, ReplaceResult, SearchMatch, SkippedFile};
use nullspace_guest::search::{self, Cut, Replace, Searched};
use nullspace_service::{FileAt, LiveSearch, Memory, Warned};

use super::files::{check_reserved, failed};
use super::live::Live;
use nullspace_service::{Error, Result};

#[async_trait]
impl LiveSearch for Live {
    async fn find_in_files(
        &self,
        at: FileAt,
        pattern: String,
        memory: &dyn Memory,
    ) -> Result<Warned<Vec<SearchMatch>>> {
        let found = self.using(|agent| async move {
            let mut exhausted = None;
            let may_keep = |bytes| memory.grow(bytes).map_err(|refused| exhausted = Some(refused)).is_ok();
            let (user, base) = self.origin(at.user, &at.path);
            let found = agent.find_lines(user, base, at.path, pattern, may_keep).await;
            match exhausted {
                Some(exhausted) => Err(exhausted.into()),
                None => found.map_err(failed),
            }
        });
        let (lines, searched) = found.await?;
        let matched = |line: search::FoundLine| SearchMatch { file: line.file, line: line.line, content: line.content };
        let warnings = warnings(searched, search::MAX_LINES);
        Ok(Warned { value: lines.into_iter().map(matched).collect(), warnings })
    }

    async fn search_files(&self, at: FileAt, pattern: String, memory: &dyn Memory) -> Result<Warned<Vec<String>>> {
        let found = self.using(|agent| async move {
            let mut exhausted = None;
            let may_keep = |bytes| memory.grow(bytes).map_err(|refused| exhausted = Some(refused)).is_ok();
            let (user, base) = self.origin(at.user, &at.path);
            let found = agent.find_names(user, base, at.path, pattern, may_keep).await;
            match exhausted {
                Some(exhausted) => Err(exhausted.into()),
                None => found.map_err(failed),
            }
        });
        let (value, searched) = found.await?;
        Ok(Warned { value, warnings: warnings(searched, search::MAX_NAMES) })
    }

    async fn replace_in_files(&self, request: ReplaceInFilesRequest, memory: &dyn Memory) -> Result<ReplaceResult> {
        if request.files.len() > search::MAX_FILES {
            return Err(Error::invalid(format!("files has more than {} paths: send them in parts", search::MAX_FILES)));
        }
        for path in &request.files {
            check_reserved(&self.cwd, path)?;
        }
        // A home is where relative paths start only when all of them are relative or have no need of it.
        let relative = request.files.iter().find(|path| !path.starts_with('/'));
        let (user, base) = self.origin(request.user, relative.map_or("/", String::as_str));
        let dry_run = request.dry_run == Some(true);
        let replace =
            Replace { files: request.files, pattern: request.pattern, replacement: request.replacement, dry_run };
        let done = self.using(|agent| async move {
            let mut exhausted = None;
            let may_keep = |bytes| memory.grow(bytes).map_err(|refused| exhausted = Some(refused)).is_ok();
            let done = agent.replace(user, base, replace, may_keep).await;
            match exhausted {
                Some(exhausted) => Err(exhausted.into()),
                None => done.map_err(failed),
            }
        });
        let (skipped, replaced) = done.await?;
        let skipped: Vec<_> =
            skipped.into_iter().map(|file| SkippedFile { path: file.path, error: file.error }).collect();
        Ok(ReplaceResult {
            replacements: replaced.replacements,
            files_modified: replaced.modified,
            files_skipped: replaced.skipped,
            binary_files_skipped: replaced.binary,
            dry_run: dry_run.then_some(true),
            skipped: (!skipped.is_empty()).then_some(skipped),
        })
    }
}

/// What a caller should know of a search beside what it has found.
fn warnings(searched: Searched, most: usize) -> Vec<String> {
    let cut = searched.cut.map(|cut| match cut {
        Cut::Matches => format!("truncated: the answer has {most} matches or 4 MiB; narrow the path or the pattern"),
        Cut::Files => {
            format!("truncated: the search stopped after {} entries; narrow the path", search::MAX_VISITED)
        }
        Cut::Time => format!("truncated: the search stopped after {} s; narrow the path", search::MAX_SECS),
    });
    let binary = (searched.binary > 0).then(|| format!("binary files that were not searched: {}", searched.binary));
    let unreadable = (searched.unreadable > 0)
        .then(|| format!("files and directories that this user may not read: {}", searched.unreadable));
    [cut, binary, unreadable].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_tells_what_it_has_left_out() {
        assert_eq!(warnings(Searched::default(), 7), Vec::<String>::new());
        let all = Searched { cut: Some(Cut::Matches), files: 9, binary: 2, unreadable: 3 };
        let said = warnings(all, 7);
        assert_eq!(said.len(), 3);
        assert!(said[0].starts_with("truncated: the answer has 7 matches"), "{said:?}");
        assert!(said[1].ends_with(": 2") && said[2].ends_with(": 3"), "{said:?}");
    }
}
