//! Files that the other end pushes.

use std::path::Path;
use std::sync::Arc;

use skein_filemesh::engine::HashedFile;
use skein_wire::signal::v1::agent_message::Kind;
use skein_wire::signal::v1::{JoinTransfer, TransferState, TransferUpdate};

use super::Server;

pub struct Push {
    pub id: [u8; 16],
    pub source: Vec<u8>,
    pub hashed: Arc<HashedFile>,
}

pub fn push(server: &Server, dir: &Path, bytes: usize) -> Push {
    let mut id = [0; 16];
    skein_agent::clock::random(&mut id);
    let mut source = vec![0; bytes];
    skein_agent::clock::random(&mut source);
    let path = dir.join(format!("source-{}.bin", id[0]));
    std::fs::write(&path, &source).unwrap();
    let hashed = server.seed(id, &path);
    Push { id, source, hashed }
}

pub fn join(push: &Push, directory: &Path, name: &str) -> JoinTransfer {
    JoinTransfer {
        transfer_id: push.id.to_vec().into(),
        file: Some(push.hashed.manifest.to_info()),
        directory: directory.to_str().unwrap().into(),
        file_name: name.into(),
        mode: 0o640,
        create_directory: true,
        ..JoinTransfer::default()
    }
}

pub fn transfer_end(server: &Server, id: &[u8; 16]) -> TransferUpdate {
    server.find("the transfer's end", |kind| match kind {
        Kind::TransferUpdate(update)
            if update.transfer_id == id[..] && update.state >= TransferState::Done as i32 =>
        {
            Some(update.clone())
        }
        _ => None,
    })
}
