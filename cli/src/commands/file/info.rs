//! `skein file info FILE|FILE.torrent`: what a file is, or what its metainfo says.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use serde_json::{Value, json};
use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::metainfo::Metainfo;
use skein_filemesh::engine::Hashes;

use super::{check_free, describe, hex, parse_piece_bytes, read_metainfo, write_whole};
use crate::commands::Outcome;
use crate::error::{CliError, EXIT_OK};
use crate::quantity;
use crate::show;

const EXAMPLES: &str = "\
The root is the hash by which transfers know a file: SHA-256 over the tree of its blocks of 16 KiB
(BEP 52). The same bytes have the same root on every host.

  skein file info release.tar                        hash a file and show its root
  skein file info release.tar --out release.meta     and write its metainfo, for `file verify`
  skein file info release.tar.torrent                show what a torrent says
  skein file info debian.torrent --as-file           hash the torrent's own bytes";

/// Flags of `file info`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct InfoArgs {
    /// A file to hash; of a torrent or metainfo its content is shown
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Write metainfo (BitTorrent version 2, with mode and time) to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// Replace the file of --out
    #[arg(long, requires = "out")]
    force: bool,
    /// Piece size: a power of two from 16K to 16M [default: by the file's size and --hosts]
    #[arg(long, value_parser = parse_piece_bytes, value_name = "SIZE")]
    piece_size: Option<u32>,
    /// Choose pieces as a push to so many hosts would
    #[arg(long, default_value_t = 1, value_name = "N", conflicts_with = "piece_size")]
    hosts: u32,
    /// Hash the bytes even if they are a torrent
    #[arg(long)]
    as_file: bool,
}

/// Shows a file or metainfo.
pub fn run(args: &InfoArgs, as_json: bool) -> Outcome {
    let named = args.file.extension().is_some_and(|end| end == "torrent");
    if !args.as_file && args.out.is_none() {
        match (named, read_metainfo(&args.file)) {
            (_, Ok(metainfo)) => return print(&metainfo, "metainfo", as_json),
            // What is called a torrent and is none deserves a word, not a hash.
            (true, Err(error)) => return Err(error),
            (false, Err(_)) => {}
        }
    }
    if let Some(out) = &args.out {
        check_free(out, args.force)?;
    }
    let metainfo = hash(&args.file, args, as_json)?;
    if let Some(out) = &args.out {
        write_whole(out, &metainfo.encode(), args.force)?;
    }
    print(&metainfo, "file", as_json)
}

fn hash(path: &Path, args: &InfoArgs, as_json: bool) -> Result<Metainfo, CliError> {
    let piece_bytes =
        |size| args.piece_size.unwrap_or_else(|| choose_piece_bytes(size, args.hosts));
    let file = describe(path, piece_bytes, Hashes::Tree, as_json)?;
    Metainfo::of_manifest(&file.manifest, file.layer, file.leaves)
        .map_err(|error| CliError::Local(format!("{}: {error}", path.display())))
}

fn print(metainfo: &Metainfo, kind: &str, as_json: bool) -> Outcome {
    if as_json {
        show::json(&value(metainfo, kind))?;
    } else {
        lines(metainfo).into_iter().try_for_each(|(key, text)| {
            show::line(&format!("{key:<10}{}", show::printable(text)))
        })?;
    }
    Ok(EXIT_OK)
}

/// The answer as JSON.
fn value(metainfo: &Metainfo, kind: &str) -> Value {
    let (geometry, tree) = (metainfo.geometry(), metainfo.tree());
    json!({
        "kind": kind,
        "name": metainfo.name(),
        "size_bytes": geometry.size_bytes(),
        "piece_bytes": geometry.piece_bytes(),
        "pieces": geometry.piece_count(),
        "root": tree.map(|tree| hex(&tree.root)),
        "has_leaves": tree.is_some_and(|tree| tree.leaves.is_some()),
        "mode": metainfo.attributes().map(|attributes| attributes.mode),
        "mtime_ms": metainfo.attributes().map(|attributes| attributes.mtime_ms),
        "info_hash_v1": metainfo.info_hash_v1().map(|hash| hex(&hash)),
        "info_hash_v2": metainfo.info_hash_v2().map(|hash| hex(&hash)),
        "trackers": metainfo.trackers(),
    })
}

/// The answer for people.
fn lines(metainfo: &Metainfo) -> Vec<(&'static str, String)> {
    let geometry = metainfo.geometry();
    let bytes = quantity::count(geometry.size_bytes());
    let size = format!("{} ({bytes} bytes)", quantity::bytes(geometry.size_bytes()));
    let pieces = quantity::count(geometry.piece_count().into());
    let pieces = format!("{pieces} of {}", quantity::size(geometry.piece_bytes().into()));
    let mut lines = vec![("name", metainfo.name().to_owned()), ("size", size), ("pieces", pieces)];
    if let Some(tree) = metainfo.tree() {
        lines.push(("root", hex(&tree.root)));
        let unit = match tree.leaves {
            Some(_) => "each block of 16 KiB",
            None => "each piece",
        };
        lines.push(("proves", unit.to_owned()));
    }
    if let Some(attributes) = metainfo.attributes() {
        lines.push(("mode", format!("{:04o}", attributes.mode)));
        lines.push(("modified", quantity::ago(quantity::now_ms(), attributes.mtime_ms)));
    }
    lines.extend(metainfo.info_hash_v1().map(|hash| ("btih v1", hex(&hash))));
    lines.extend(metainfo.info_hash_v2().map(|hash| ("btih v2", hex(&hash))));
    lines.extend(metainfo.trackers().iter().map(|tracker| ("tracker", tracker.clone())));
    lines
}
