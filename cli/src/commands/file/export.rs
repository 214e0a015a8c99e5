//! `skein file export-torrent FILE`: a torrent of BitTorrent version 1, which every client reads.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use serde_json::json;
use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::metainfo::Metainfo;
use skein_filemesh::engine::Hashes;

use super::{beside, check_free, describe, hex, parse_piece_bytes, write_whole};
use crate::commands::Outcome;
use crate::error::{CliError, EXIT_OK};
use crate::quantity;
use crate::show;

/// Pieces of a torrent are chosen as for a swarm of so many: about a thousand pieces.
const SWARM_HOSTS: u32 = 1_000;

const EXAMPLES: &str = "\
The torrent has SHA-1 hashes only, as clients without BitTorrent version 2 need them. It depends on
nothing but the file, --name, --piece-size and the trackers: made again, it is the same.

  skein file export-torrent release.tar
  skein file export-torrent release.tar --tracker http://tracker:6969/announce --out r.torrent
  skein file export-torrent release.tar --piece-size 256K --manifest release.tar.meta";

/// Flags of `file export-torrent`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ExportArgs {
    /// The file
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Where the torrent goes [default: the file's name with .torrent, in this folder]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Name in the torrent [default: the file's own]
    #[arg(long)]
    name: Option<String>,
    /// Piece size: a power of two from 16K to 16M [default: by the file's size]
    #[arg(long, value_parser = parse_piece_bytes, value_name = "SIZE")]
    piece_size: Option<u32>,
    /// Address of a tracker; may be given several times, in order of preference
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    tracker: Vec<String>,
    /// Write our own metainfo (for `skein file verify`) too, from the same reading
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    manifest: Option<PathBuf>,
}

/// Makes the torrent.
pub fn run(args: &ExportArgs, as_json: bool) -> Outcome {
    let out = args.out.clone().unwrap_or_else(|| beside(&args.file, ".torrent"));
    for path in [Some(&out), args.manifest.as_ref()].into_iter().flatten() {
        check_free(path, args.force)?;
    }
    let piece_bytes =
        |size| args.piece_size.unwrap_or_else(|| choose_piece_bytes(size, SWARM_HOSTS));
    let file = describe(&args.file, piece_bytes, Hashes::TreeAndPieces, as_json)?;
    let refused = |error| CliError::Local(format!("{}: {error}", args.file.display()));
    let geometry = file.manifest.geometry;
    let name = args.name.as_ref().unwrap_or(&file.manifest.name);
    let pieces = file.pieces.unwrap_or_default();
    let torrent = Metainfo::of_pieces(name, geometry, pieces, args.tracker.clone());
    let torrent = torrent.map_err(refused)?;
    let root = hex(&file.manifest.root);
    if let Some(path) = &args.manifest {
        let own = Metainfo::of_manifest(&file.manifest, file.layer, file.leaves);
        write_whole(path, &own.map_err(refused)?.encode(), args.force)?;
    }
    write_whole(&out, &torrent.encode(), args.force)?;
    let info_hash = torrent.info_hash_v1().map(|hash| hex(&hash)).unwrap_or_default();
    if as_json {
        show::json(&json!({
            "torrent": out.to_string_lossy(),
            "manifest": args.manifest.as_ref().map(|path| path.to_string_lossy()),
            "name": torrent.name(),
            "size_bytes": geometry.size_bytes(),
            "piece_bytes": geometry.piece_bytes(),
            "pieces": geometry.piece_count(),
            "info_hash_v1": info_hash,
            "root": root,
        }))?;
    } else {
        let pieces = show::plural(geometry.piece_count().into(), "piece");
        let each = quantity::size(geometry.piece_bytes().into());
        let size = quantity::bytes(geometry.size_bytes());
        let out = show::printable(out.display().to_string());
        show::line(&format!("{out}: {size} in {pieces} of {each}, info hash {info_hash}"))?;
    }
    Ok(EXIT_OK)
}
