//! `skein file ...`: a file's hashes, its metainfo, and ordinary BitTorrent, without a server.

mod export;
mod info;
mod plain;
mod verify;

use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use skein_filemesh::core::geometry::{PIECE_BYTES_MAX, PIECE_BYTES_MIN};
use skein_filemesh::core::metainfo::{METAINFO_BYTES_MAX, Metainfo};
use skein_filemesh::engine::{DescribedFile, FileError, Hashes, describe_file};

use super::Outcome;
use crate::error::CliError;
use crate::progress::Progress;
use crate::quantity;

const EXAMPLES: &str = "\
None of these needs a server.

A file that was copied by hand, checked where it arrived:
  skein file info release.tar --out release.tar.meta     at the source: its hashes into a file
  skein file verify release.tar --manifest release.tar.meta     at the target

A torrent for ordinary BitTorrent clients (aria2, Transmission, qBittorrent):
  skein file export-torrent release.tar --tracker http://tracker:6969/announce
  skein file info release.tar.torrent";

/// Flags of `file`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct FileArgs {
    #[command(subcommand)]
    command: FileCommand,
}

#[derive(Debug, Subcommand)]
enum FileCommand {
    /// Show a file's hashes, or what metainfo or a torrent says
    Info(info::InfoArgs),
    /// Prove every block of a file against its metainfo
    Verify(verify::VerifyArgs),
    /// Make a torrent of a file for ordinary BitTorrent clients
    ExportTorrent(export::ExportArgs),
    /// Serve a file to ordinary BitTorrent clients while this runs
    SeedTorrent(plain::SeedArgs),
    /// Fetch a file from one ordinary BitTorrent client
    GetTorrent(plain::GetArgs),
}

/// Carries out the subcommand.
pub fn run(args: &FileArgs, json: bool) -> Outcome {
    match &args.command {
        FileCommand::Info(args) => info::run(args, json),
        FileCommand::Verify(args) => verify::run(args, json),
        FileCommand::ExportTorrent(args) => export::run(args, json),
        FileCommand::SeedTorrent(args) => plain::seed(args, json),
        FileCommand::GetTorrent(args) => plain::get(args, json),
    }
}

/// Parses a piece size: a power of two within the bounds of every client.
fn parse_piece_bytes(text: &str) -> Result<u32, String> {
    let bytes = quantity::parse_bytes(text)?;
    let legal = bytes.is_power_of_two()
        && (u64::from(PIECE_BYTES_MIN)..=u64::from(PIECE_BYTES_MAX)).contains(&bytes);
    legal.then_some(bytes as u32).ok_or_else(|| {
        format!("\"{text}\" is no piece size: a power of two from 16K to 16M, as in 256K")
    })
}

fn failed(error: FileError) -> CliError {
    CliError::Local(error.to_string())
}

/// Reads and hashes `path` once, with a progress.
fn describe(
    path: &Path,
    piece_bytes: impl FnOnce(u64) -> u32,
    hashes: Hashes,
    json: bool,
) -> Result<DescribedFile, CliError> {
    let mut progress = Progress::new("hashing", 0, true, json);
    let described = describe_file(path, piece_bytes, hashes, |done, total| {
        progress.advance_to(done, total);
        ControlFlow::Continue(())
    });
    progress.clear();
    described.map_err(failed)
}

/// The metainfo in the file at `path`.
fn read_metainfo(path: &Path) -> Result<Metainfo, CliError> {
    let cannot = || CliError::io(format!("cannot read {}", path.display()));
    let mut bytes = Vec::new();
    // One byte more than is allowed shows that there are too many.
    let bound = METAINFO_BYTES_MAX as u64 + 1;
    File::open(path).map_err(cannot())?.take(bound).read_to_end(&mut bytes).map_err(cannot())?;
    Metainfo::decode(&bytes)
        .map_err(|error| CliError::Local(format!("{}: {error}", path.display())))
}

/// Where something that is made of `file` goes unless the user says otherwise: into this folder.
fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Refuses early what would be refused after a long time of hashing.
fn check_free(out: &Path, force: bool) -> Result<(), CliError> {
    if !force && out.symlink_metadata().is_ok() {
        let out = out.display();
        return Err(CliError::Usage(format!("{out} exists; choose another --out, or --force")));
    }
    Ok(())
}

/// Writes a small file whole or not at all.
fn write_whole(out: &Path, bytes: &[u8], force: bool) -> Result<(), CliError> {
    check_free(out, force)?;
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = out.with_file_name(name);
    let written = File::create_new(&part)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, out));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&part); // the error says what matters
        CliError::io(format!("cannot write {}", out.display()))(error)
    })
}

/// A hash as people compare it.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
