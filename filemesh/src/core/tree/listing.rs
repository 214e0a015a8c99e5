//! What a tree holds: directories, files, links, and their attributes.
//!
//! Entries stand in depth-first order, names of one directory in the order of their bytes. An
//! entry names only itself; its directory is the last one before it that is one level up. So no
//! path can be absolute, climb, or lead through something that is no directory: what cannot be
//! said needs no check.

use crate::core::geometry::FILE_BYTES_MAX;
use crate::core::manifest::MODE_TRAVELS;
use crate::core::name::{NameError, check_file_name};
use std::ops::Range;

/// Entries of a tree at most, its root among them.
pub const ENTRIES_MAX: u32 = 1_000_000;

/// Extents of all files with holes together.
pub const EXTENTS_MAX: u32 = 1_000_000;

/// Levels below the root.
pub const DEPTH_MAX: u8 = 128;

/// Bytes of a path below the root, so that ordinary programs can open what arrives (`PATH_MAX`
/// with its NUL is 4,096), and of what a symbolic link says.
pub const PATH_BYTES_MAX: usize = 4_095;

/// Pairs of a user and a group.
pub const OWNERS_MAX: u16 = 4_096;

/// Bytes of an encoded listing: a million entries with names of 100 bytes.
pub const LISTING_BYTES_MAX: u32 = 128 * 1024 * 1024;

/// Longest file, holes included: what an offset can say.
pub const APPARENT_BYTES_MAX: u64 = i64::MAX as u64;

/// Why a listing is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// It ends within a field, or goes on behind the last entry.
    #[error("its length does not fit its content")]
    Length,
    /// It does not begin as a listing does.
    #[error("it is no listing")]
    Magic,
    /// A version that this program does not know.
    #[error("its version {0} is unknown")]
    Version(u32),
    /// Its bytes are not those that were summed.
    #[error("its checksum is wrong")]
    Checksum,
    /// A kind, or a field that must be empty.
    #[error("entry {0} is of no known kind")]
    Kind(u32),
    /// Entry 0 is not a nameless directory.
    #[error("it does not begin with its root")]
    Root,
    /// More entries than [`ENTRIES_MAX`].
    #[error("it has more than {ENTRIES_MAX} entries")]
    Entries,
    /// Larger than [`LISTING_BYTES_MAX`].
    #[error("it has more than {LISTING_BYTES_MAX} bytes")]
    Bytes,
    /// An entry is below something that is no directory, or deeper than [`DEPTH_MAX`].
    #[error("entry {0} is below no directory or more than {DEPTH_MAX} levels deep")]
    Depth(u32),
    /// An entry's name is hostile.
    #[error("the name of entry {0} is refused: {1}")]
    Name(u32, NameError),
    /// A path longer than [`PATH_BYTES_MAX`].
    #[error("the path of entry {0} has more than {PATH_BYTES_MAX} bytes")]
    Path(u32),
    /// A name is there twice or not in its place.
    #[error("entry {0} is not in order, or twice in its directory")]
    Order(u32),
    /// Bits of a mode that do not travel.
    #[error("the mode of entry {0} has bits outside {MODE_TRAVELS:o}")]
    Mode(u32),
    /// An owner that is not in the table, or a name that none can have.
    #[error("the owner of entry {0} is not in the table")]
    Owner(u32),
    /// An owner's name that is none, or too many of them.
    #[error("its table of owners has a bad name or more than {OWNERS_MAX} entries")]
    Owners,
    /// A file that no offset can reach the end of.
    #[error("entry {0} is larger than any file")]
    Size(u32),
    /// Extents that overlap, touch, leave their file or leave nothing out; or too many.
    #[error("entry {0} has bad extents, or there are more than {EXTENTS_MAX}")]
    Extents(u32),
    /// A symbolic link that says nothing, or nothing that one can say.
    #[error("the link of entry {0} is empty, too long or has a NUL byte")]
    Target(u32),
    /// A symbolic link that leads out of the tree, see [`stays_within`].
    #[error("the link of entry {0} leads out of the tree")]
    Outside(u32),
    /// A hard link to something that is no file before it.
    #[error("entry {0} is another name of something that is no file before it")]
    HardLink(u32),
    /// More content than a transfer may have.
    #[error("it has more than {FILE_BYTES_MAX} bytes of content")]
    Content,
    /// Bytes between files that are not zero.
    #[error("there is something between its files")]
    Padding,
    /// The stream is not as long as the order says.
    #[error("it describes {described} bytes, but the order says {ordered}")]
    StreamBytes {
        /// What follows from the listing.
        described: u64,
        /// What was signed.
        ordered: u64,
    },
}

/// Whether a symbolic link `depth` levels below the root that says `target` leads to something in
/// the tree: it is relative, climbs no higher than the root, and does not climb after it went down,
/// because what it went down through may be a link itself.
pub fn stays_within(depth: u8, target: &[u8]) -> bool {
    let steps = target.split(|byte| *byte == b'/').filter(|step| !matches!(*step, b"" | b"."));
    let mut below = steps.skip_while(|step| *step == b"..");
    let climbs = target.split(|byte| *byte == b'/').filter(|step| *step == b"..").count();
    !target.starts_with(b"/") && climbs < usize::from(depth) && below.all(|step| step != b"..")
}

/// What every entry has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permissions, within [`MODE_TRAVELS`]; of a symbolic link without meaning.
    pub mode: u16,
    /// Number of its owner in the table, from 1 on; 0: nobody is named.
    pub owner: u16,
    /// Modification time, nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A file without holes that are left out.
    File {
        /// Its length.
        size_bytes: u64,
    },
    /// A file of which only some ranges travel; the rest are holes.
    Sparse {
        /// Its length, holes included.
        size_bytes: u64,
        /// The ranges, in order, apart from each other, at least one byte each.
        extents: &'a [Range<u64>],
    },
    /// A symbolic link and what it says; it stays within the tree ([`stays_within`]).
    Symlink(&'a [u8]),
    /// Another name of the file that is this entry.
    HardLink(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    Directory,
    File { size_bytes: u64 },
    Sparse { size_bytes: u64, first: u32, count: u32 },
    Symlink { at: u32, len: u16 },
    HardLink(u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    meta: Meta,
    stored: Stored,
    name_at: u32,
    parent: u32,
    name_len: u8,
    depth: u8,
}

/// A user and a group by name; an empty name is nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnerNames {
    /// User.
    pub user: Vec<u8>,
    /// Group.
    pub group: Vec<u8>,
}

/// What a tree holds. About 64 bytes of memory per entry, and its name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    entries: Vec<Entry>,
    owners: Vec<OwnerNames>,
    extents: Vec<Range<u64>>,
    /// Names and what links say.
    bytes: Vec<u8>,
}

impl Listing {
    /// Number of entries, the root among them.
    pub fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Whether there is not even a root; never so of a listing that was built or decoded.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The owners that entries refer to.
    pub fn owners(&self) -> &[OwnerNames] {
        &self.owners
    }

    /// Extents of all files with holes.
    pub fn extent_count(&self) -> u32 {
        self.extents.len() as u32
    }

    /// The attributes of `entry`, which must be below [`Listing::len`] here and in what follows.
    pub fn meta(&self, entry: u32) -> Meta {
        self.entries[entry as usize].meta
    }

    /// What `entry` is.
    pub fn kind(&self, entry: u32) -> Kind<'_> {
        match self.entries[entry as usize].stored {
            Stored::Directory => Kind::Directory,
            Stored::File { size_bytes } => Kind::File { size_bytes },
            Stored::Sparse { size_bytes, first, count } => {
                let extents = &self.extents[first as usize..][..count as usize];
                Kind::Sparse { size_bytes, extents }
            }
            Stored::Symlink { at, len } => {
                Kind::Symlink(&self.bytes[at as usize..][..usize::from(len)])
            }
            Stored::HardLink(of) => Kind::HardLink(of),
        }
    }

    /// The name of `entry` in its directory; empty of the root.
    pub fn name(&self, entry: u32) -> &[u8] {
        let entry = &self.entries[entry as usize];
        &self.bytes[entry.name_at as usize..][..usize::from(entry.name_len)]
    }

    /// Levels of `entry` below the root.
    pub fn depth(&self, entry: u32) -> u8 {
        self.entries[entry as usize].depth
    }

    /// The directory of `entry`; of the root, the root.
    pub fn parent(&self, entry: u32) -> u32 {
        self.entries[entry as usize].parent
    }

    /// The path of `entry` below the root; empty of the root.
    pub fn path(&self, mut entry: u32) -> Vec<u8> {
        let mut names = vec![];
        while self.depth(entry) > 0 {
            names.push(self.name(entry));
            entry = self.parent(entry);
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The first entry behind everything that is below `entry`.
    pub fn subtree_end(&self, entry: u32) -> u32 {
        let depth = self.depth(entry);
        let below = self.entries[entry as usize + 1..].iter();
        entry + 1 + below.take_while(|below| below.depth > depth).count() as u32
    }
}

/// A listing that is being made, entry by entry, each checked.
#[derive(Debug)]
pub struct ListingBuilder {
    listing: Listing,
    /// By depth: the open directories from the root on, with the lengths of their paths.
    open: Vec<(u32, usize)>,
    /// By depth: the entry before in the same directory.
    siblings: Vec<Option<u32>>,
    encoded_bytes: usize,
}

impl Default for ListingBuilder {
    fn default() -> Self {
        let encoded_bytes = super::codec::HEADER_BYTES;
        Self { listing: Listing::default(), open: vec![], siblings: vec![], encoded_bytes }
    }
}

impl ListingBuilder {
    /// Adds an owner to the table; the answer is its number for [`Meta::owner`].
    pub fn push_owner(&mut self, owner: OwnerNames) -> Result<u16, ListingError> {
        let is_name = |name: &[u8]| {
            u8::try_from(name.len()).is_ok() && !name.iter().any(|byte| matches!(byte, 0 | b':'))
        };
        let count = self.listing.owners.len();
        if count >= usize::from(OWNERS_MAX) || !is_name(&owner.user) || !is_name(&owner.group) {
            return Err(ListingError::Owners);
        }
        self.encoded_bytes += super::codec::owner_bytes(&owner);
        self.listing.owners.push(owner);
        Ok(count as u16 + 1)
    }

    /// Adds an entry: first the root (depth 0, no name), then each directory's content behind it.
    /// The answer is its number.
    pub fn push(
        &mut self,
        depth: u8,
        name: &[u8],
        meta: Meta,
        kind: Kind<'_>,
    ) -> Result<u32, ListingError> {
        let entry = self.listing.len();
        if entry >= ENTRIES_MAX {
            return Err(ListingError::Entries);
        }
        let (parent, path_bytes) = self.check_place(entry, depth, name, &kind)?;
        if u32::from(meta.mode) & !MODE_TRAVELS != 0 {
            return Err(ListingError::Mode(entry));
        }
        if usize::from(meta.owner) > self.listing.owners.len() {
            return Err(ListingError::Owner(entry));
        }
        self.check_kind(entry, depth, &kind)?;
        let encoded_bytes = self.encoded_bytes + super::codec::entry_bytes(name, &kind);
        if encoded_bytes > LISTING_BYTES_MAX as usize {
            return Err(ListingError::Bytes);
        }
        // Nothing is kept of an entry that is refused.
        self.encoded_bytes = encoded_bytes;
        let name_at = self.keep(name);
        let stored = self.store(kind);
        let name_len = name.len() as u8;
        self.listing.entries.push(Entry { meta, stored, name_at, parent, name_len, depth });
        self.open.truncate(usize::from(depth));
        self.siblings.truncate(usize::from(depth) + 1);
        self.siblings.resize(usize::from(depth) + 1, None);
        self.siblings[usize::from(depth)] = Some(entry);
        if stored == Stored::Directory {
            self.open.push((entry, path_bytes));
        }
        Ok(entry)
    }

    /// Directory and length of the path of an entry at this place.
    fn check_place(
        &self,
        entry: u32,
        depth: u8,
        name: &[u8],
        kind: &Kind<'_>,
    ) -> Result<(u32, usize), ListingError> {
        if entry == 0 || depth == 0 {
            let is_root = entry == 0 && depth == 0 && name.is_empty() && *kind == Kind::Directory;
            return is_root.then_some((0, 0)).ok_or(ListingError::Root);
        }
        let directory = self.open.get(usize::from(depth) - 1).filter(|_| depth <= DEPTH_MAX);
        let (parent, above_bytes) = *directory.ok_or(ListingError::Depth(entry))?;
        check_file_name(name).map_err(|error| ListingError::Name(entry, error))?;
        let path_bytes = if parent == 0 { name.len() } else { above_bytes + 1 + name.len() };
        if path_bytes > PATH_BYTES_MAX {
            return Err(ListingError::Path(entry));
        }
        let before = self.siblings.get(usize::from(depth)).copied().flatten();
        match before {
            Some(before) if self.listing.name(before) >= name => Err(ListingError::Order(entry)),
            _ => Ok((parent, path_bytes)),
        }
    }

    fn check_kind(&self, entry: u32, depth: u8, kind: &Kind<'_>) -> Result<(), ListingError> {
        match *kind {
            Kind::Directory => Ok(()),
            Kind::File { size_bytes } | Kind::Sparse { size_bytes, .. }
                if size_bytes > APPARENT_BYTES_MAX =>
            {
                Err(ListingError::Size(entry))
            }
            Kind::File { .. } => Ok(()),
            Kind::Sparse { size_bytes, extents } => {
                let total = self.listing.extents.len() + extents.len();
                let in_order = extents.windows(2).all(|pair| pair[0].end < pair[1].start);
                let not_empty = extents.iter().all(|extent| extent.start < extent.end);
                let within = extents.last().is_none_or(|last| last.end <= size_bytes);
                // Lengths of what is in order add up to the file's at most.
                let data = || extents.iter().map(|extent| extent.end - extent.start).sum::<u64>();
                let legal = total <= EXTENTS_MAX as usize && in_order && not_empty && within;
                let legal = legal && data() < size_bytes;
                legal.then_some(()).ok_or(ListingError::Extents(entry))
            }
            Kind::Symlink(target) => {
                let legal = (1..=PATH_BYTES_MAX).contains(&target.len()) && !target.contains(&0);
                legal.then_some(()).ok_or(ListingError::Target(entry))?;
                stays_within(depth, target).then_some(()).ok_or(ListingError::Outside(entry))
            }
            Kind::HardLink(of) => {
                let is_file = of < entry
                    && matches!(self.listing.kind(of), Kind::File { .. } | Kind::Sparse { .. });
                is_file.then_some(()).ok_or(ListingError::HardLink(entry))
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> u32 {
        let at = self.listing.bytes.len() as u32;
        self.listing.bytes.extend_from_slice(bytes);
        at
    }

    fn store(&mut self, kind: Kind<'_>) -> Stored {
        match kind {
            Kind::Directory => Stored::Directory,
            Kind::File { size_bytes } => Stored::File { size_bytes },
            Kind::Sparse { size_bytes, extents } => {
                let first = self.listing.extents.len() as u32;
                self.listing.extents.extend_from_slice(extents);
                Stored::Sparse { size_bytes, first, count: extents.len() as u32 }
            }
            Kind::Symlink(target) => {
                Stored::Symlink { at: self.keep(target), len: target.len() as u16 }
            }
            Kind::HardLink(of) => Stored::HardLink(of),
        }
    }

    /// The listing, which must have a root.
    pub fn finish(self) -> Result<Listing, ListingError> {
        if self.listing.is_empty() { Err(ListingError::Root) } else { Ok(self.listing) }
    }
}
