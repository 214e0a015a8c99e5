//! What a restarted data process needs before control answers: the last routing table and the
//! revoked identities, as files of the data process's own folder.
//!
//! A file is replaced by rename after a flush, so it is always one whole version. A file that
//! cannot be read is ignored with a warning: control sends the state again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use skein_wire::fleet::v1::{Revoked, RoutingTable};
use skein_wire::prost::Message;

use crate::directory::RevokedSet;

const TABLE: &str = "table.bin";
const REVOKED: &str = "revoked.bin";

/// Writes `bytes` to `dir/name`: whole or not at all.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// Keeps the routing table.
pub fn save_table(dir: &Path, table: &RoutingTable) {
    save(dir, TABLE, table);
}

/// The routing table kept last.
pub fn load_table(dir: &Path) -> Option<RoutingTable> {
    load(dir, TABLE)
}

/// Keeps the revoked identities.
pub fn save_revoked(dir: &Path, revoked: &Revoked) {
    save(dir, REVOKED, revoked);
}

/// The revoked identities kept last.
pub fn load_revoked(dir: &Path) -> Option<Revoked> {
    load(dir, REVOKED)
}

/// The set in the form in which sessions ask it.
pub fn revoked_set(revoked: &Revoked) -> RevokedSet {
    let serial = |text: &String| {
        let digits = text.trim_start_matches("00").to_ascii_lowercase();
        digits.replace(':', "")
    };
    RevokedSet {
        agents: revoked.agent_ids.iter().cloned().collect(),
        serials: revoked.certificate_serials.iter().map(serial).collect(),
    }
}

fn save<M: Message>(dir: &Path, name: &str, message: &M) {
    if let Err(error) = replace(dir, name, &message.encode_to_vec()) {
        tracing::error!(%error, dir = %dir.display(), name, "cannot keep state for a restart");
    }
}

fn load<M: Message + Default>(dir: &Path, name: &str) -> Option<M> {
    let bytes = match fs::read(dir.join(name)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, name, "cannot read state of the last run");
            return None;
        }
    };
    M::decode(&bytes[..])
        .inspect_err(|error| tracing::warn!(%error, name, "state of the last run is damaged"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_and_damage_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_table(dir.path()), None);
        let table = RoutingTable { revision: 7, ..Default::default() };
        save_table(dir.path(), &table);
        assert_eq!(load_table(dir.path()), Some(table));
        fs::write(dir.path().join(TABLE), [0xff; 40]).unwrap();
        assert_eq!(load_table(dir.path()), None);
    }

    #[test]
    fn serials_are_compared_in_one_form() {
        let revoked = Revoked {
            agent_ids: vec!["a".into()],
            certificate_serials: vec!["00AB:0C".into(), "7f".into()],
        };
        let set = revoked_set(&revoked);
        assert!(set.serials.contains("ab0c") && set.serials.contains("7f"));
    }
}
