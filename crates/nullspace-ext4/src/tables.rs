//! Bitmaps and inode tables: where they go, and how inodes get into them.
//!
//! ```text
//!  groups 0..15 (contents in them):  ... contents | block bitmaps 0..15 | inode bitmaps 0..15 | inode tables 0..15 | ...
//!  groups 16..31 (empty):            group 16: | block bitmaps 16..31 | inode bitmaps | inode tables | free ...
//! ```

use crate::BLOCK;
use crate::block_map::BlockMap;
use crate::error::Error;
use crate::geometry::{Geometry, INODE_SIZE, INODES_PER_BLOCK};
use crate::group::Group;
use crate::output::Output;

/// Places of bitmaps and inode tables, by group.
#[derive(Debug)]
pub(crate) struct Tables {
    block_bitmaps: Vec<u32>,
    inode_bitmaps: Vec<u32>,
    inode_tables: Vec<u32>,
}

impl Tables {
    /// Finds and takes room for them, for groups of so many inodes. None if there is not enough.
    pub(crate) fn place(geometry: &Geometry, map: &mut BlockMap, per_group: u32) -> Option<Tables> {
        let count = geometry.groups as usize;
        let mut tables = Tables {
            block_bitmaps: Vec::with_capacity(count),
            inode_bitmaps: Vec::with_capacity(count),
            inode_tables: Vec::with_capacity(count),
        };
        let table_len = per_group / INODES_PER_BLOCK;
        for flex in 0..geometry.flexes() {
            let groups = geometry.flex_groups(flex);
            let count = groups.len() as u32;
            let all = count * (2 + table_len);
            let home = geometry.group_start(groups.start) + geometry.base_len(groups.start);
            let adjoining = if map.is_untouched(groups.start) && map.mark(home, all) {
                Some(home)
            } else {
                map.take_adjoining(all)
            };
            let mut next = adjoining;
            let mut take = |len: u32| match &mut next {
                Some(next) => Some(std::mem::replace(next, *next + len)),
                // No room for the whole set in one piece: each part for itself.
                None => map.take_adjoining(len),
            };
            for _ in groups.clone() {
                tables.block_bitmaps.push(take(1)?);
            }
            for _ in groups.clone() {
                tables.inode_bitmaps.push(take(1)?);
            }
            for _ in groups {
                tables.inode_tables.push(take(table_len)?);
            }
        }
        Some(tables)
    }

    /// A descriptor that says where the group's parts are, and nothing else yet.
    pub(crate) fn group(&self, number: u32) -> Group {
        let index = number as usize;
        Group {
            block_bitmap: self.block_bitmaps[index],
            inode_bitmap: self.inode_bitmaps[index],
            inode_table: self.inode_tables[index],
            ..Group::default()
        }
    }
}

/// Takes inodes in the order of their numbers and writes each group's table in one go, as far as it is used.
#[derive(Debug)]
pub(crate) struct InodeStream<'a> {
    tables: &'a Tables,
    per_group: u32,
    /// The used part of the current group's table.
    table: Vec<u8>,
    /// Directories of all groups up to the current one.
    directories: Vec<u32>,
}

impl<'a> InodeStream<'a> {
    /// Starts with inode 1.
    pub(crate) fn new(tables: &'a Tables, per_group: u32) -> InodeStream<'a> {
        InodeStream { tables, per_group, table: Vec::new(), directories: vec![0] }
    }

    /// The number that the next inode gets.
    pub(crate) fn next(&self) -> u32 {
        let groups_before = self.directories.len() as u32 - 1;
        groups_before * self.per_group + (self.table.len() / INODE_SIZE) as u32 + 1
    }

    /// Adds an inode.
    pub(crate) fn push(&mut self, inode: &[u8; INODE_SIZE], directory: bool, output: &mut Output) -> Result<(), Error> {
        if self.table.len() / INODE_SIZE == self.per_group as usize {
            self.flush(output)?;
            self.directories.push(0);
        }
        self.table.extend_from_slice(inode);
        if let Some(count) = self.directories.last_mut() {
            *count += u32::from(directory);
        }
        Ok(())
    }

    /// Writes the last table. Returns the number of directories by group, up to the last group with an inode.
    pub(crate) fn finish(mut self, output: &mut Output) -> Result<Vec<u32>, Error> {
        self.flush(output)?;
        Ok(self.directories)
    }

    fn flush(&mut self, output: &mut Output) -> Result<(), Error> {
        let group = self.directories.len() - 1;
        self.table.resize(self.table.len().next_multiple_of(BLOCK), 0);
        output.write(self.tables.inode_tables[group], &self.table)?;
        self.table.clear();
        Ok(())
    }
}
