//! A file whose whole content is at hand: written, flushed and renamed in one go, under the rules of
//! [`super::partial`]. It has no state, takes no slab and allocates nothing ahead, because nothing
//! of it waits for anything: for 10 KiB those cost more than the file.

use super::partial::{
    Attributes, absent, open_temporary, remove_temporary, take_place, temporary_name,
};
use super::state_file::StateFile;
use crate::core::name::check_file_name;
use crate::engine::TargetDir;
use crate::engine::error::{Context, FileError};
use skein_wire::ids::TransferId;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Makes `name` in `dir` a file with `content`. It appears whole and durable, or not at all; what
/// an earlier run left of `transfer`, here and in `state_dir`, goes.
pub fn place_whole(
    dir: &TargetDir,
    name: &[u8],
    transfer: &TransferId,
    state_dir: &Path,
    content: &[u8],
    attributes: &Attributes,
) -> Result<(), FileError> {
    check_file_name(name)?;
    dir.check_replaceable(name)?;
    let temporary = temporary_name(transfer);
    let path = dir.entry(&temporary);
    let (file, is_new) = open_temporary(dir, &temporary, &path)?;
    let fill = || {
        if !is_new {
            file.set_len(0).on("truncate", &path)?;
            let state = StateFile::path_in(state_dir, transfer);
            absent(fs::remove_file(&state)).on("remove", &state)?;
        }
        dir.check_room(content.len() as u64)?;
        file.write_all_at(content, 0).on("write", &path)?;
        take_place(dir, &file, &temporary, name, attributes)
    };
    let filled = fill();
    if filled.is_err() {
        let _ = remove_temporary(dir, &temporary); // the first error tells more
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Owner;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const TRANSFER: TransferId = TransferId([3; 16]);

    struct World(tempfile::TempDir);

    impl World {
        fn new() -> Self {
            let base = tempfile::tempdir().unwrap();
            fs::create_dir(base.path().join("in")).unwrap();
            fs::create_dir(base.path().join("state")).unwrap();
            Self(base)
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        fn place(&self, name: &str, content: &[u8]) -> Result<(), FileError> {
            let dir = TargetDir::open(&self.path("in"), false).unwrap();
            let owner = Owner::default();
            let attributes = Attributes { mode: 0o640, owner, mtime_ms: Some(1_234_567) };
            let state = self.path("state");
            place_whole(&dir, name.as_bytes(), &TRANSFER, &state, content, &attributes)
        }

        fn names(&self, dir: &str) -> Vec<String> {
            let entries = fs::read_dir(self.path(dir)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    #[test]
    fn a_file_appears_whole_with_its_attributes() {
        let world = World::new();
        for content in [&b"first"[..], b"", b"second and longer"] {
            world.place("f", content).unwrap();
            assert_eq!(fs::read(world.path("in/f")).unwrap(), content);
            let metadata = fs::metadata(world.path("in/f")).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
            assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_234, 567_000_000));
            assert_eq!(world.names("in"), ["f"]);
            assert_eq!(world.names("state"), [""; 0]);
        }
    }

    #[test]
    fn what_an_earlier_run_left_goes() {
        let world = World::new();
        let temporary = String::from_utf8(temporary_name(&TRANSFER)).unwrap();
        fs::write(world.path("in").join(&temporary), "longer than what comes").unwrap();
        let state = StateFile::path_in(&world.path("state"), &TRANSFER);
        fs::write(state, "claims").unwrap();
        world.place("f", b"new").unwrap();
        assert_eq!(fs::read(world.path("in/f")).unwrap(), b"new");
        assert_eq!((world.names("in"), world.names("state")), (vec!["f".to_owned()], vec![]));
    }

    #[test]
    fn a_link_is_replaced_and_a_directory_refused_with_nothing_left() {
        let world = World::new();
        fs::write(world.path("outside"), "untouched").unwrap();
        symlink(world.path("outside"), world.path("in/f")).unwrap();
        world.place("f", b"new").unwrap();
        assert!(fs::symlink_metadata(world.path("in/f")).unwrap().is_file());
        assert_eq!(fs::read(world.path("outside")).unwrap(), b"untouched");
        fs::create_dir(world.path("in/d")).unwrap();
        assert!(matches!(world.place("d", b"new"), Err(FileError::Occupied { .. })));
        assert!(matches!(world.place("../f", b"new"), Err(FileError::Name(_))));
        let mut names = world.names("in");
        names.sort();
        assert_eq!(names, ["d", "f"]);
    }
}
