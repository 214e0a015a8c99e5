//! Whom files belong to: names at the source, numbers at the target.

use crate::core::tree::listing::{Listing, ListingBuilder, ListingError, OwnerNames};
use crate::engine::error::{Context, FileError};
use crate::engine::{Owner, sys};
use std::collections::HashMap;
use std::path::Path;

/// Whom the entries of a received tree shall belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// Whoever writes them.
    #[default]
    Writer,
    /// All to one owner.
    All(Owner),
    /// As at the source, by name; a name that this host does not have is an error.
    Named,
}

impl Ownership {
    /// The owner of each number in the table of `listing`, number 0 first.
    pub(super) fn resolve(&self, listing: &Listing) -> Result<Vec<Owner>, FileError> {
        let all = match self {
            Self::Writer => Owner::default(),
            Self::All(owner) => *owner,
            Self::Named => {
                let named = listing.owners().iter().map(|names| {
                    let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
                    Owner::parse(&format!("{}:{}", text(&names.user), text(&names.group)))
                        // `user:` would add the user's own group, which nobody named.
                        .map(|owner| Owner {
                            gid: owner.gid.filter(|_| !names.group.is_empty()),
                            ..owner
                        })
                });
                return std::iter::once(Ok(Owner::default())).chain(named).collect();
            }
        };
        Ok(vec![all; listing.owners().len() + 1])
    }
}

/// The owners that were met at a source, and their numbers in its table.
#[derive(Debug, Default)]
pub(super) struct OwnerTable(HashMap<(u32, u32), u16>);

impl OwnerTable {
    /// The number of `uid` and `gid`; what has no name stays unnamed.
    pub fn number(
        &mut self,
        uid: u32,
        gid: u32,
        builder: &mut ListingBuilder,
        path: &Path,
    ) -> Result<u16, FileError> {
        if let Some(number) = self.0.get(&(uid, gid)) {
            return Ok(*number);
        }
        let user = sys::user_name(uid).on("look up the owner of", path)?.unwrap_or_default();
        let group = sys::group_name(gid).on("look up the group of", path)?.unwrap_or_default();
        let number = if user.is_empty() && group.is_empty() {
            0
        } else {
            let refuse =
                |source: ListingError| FileError::Listing { path: path.to_path_buf(), source };
            builder.push_owner(OwnerNames { user, group }).map_err(refuse)?
        };
        self.0.insert((uid, gid), number);
        Ok(number)
    }
}
