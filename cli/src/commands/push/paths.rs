//! What `push` takes: files, directories and patterns of this machine, sent as one file or as a
//! tree, and the flags that say how.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use skein_controlplane::api::types::{TransferSource, TreeLinks, TreeRequest};
use skein_filemesh::core::planner::INLINE_BYTES_MAX;
use skein_filemesh::core::tree::listing::Kind;
use skein_filemesh::engine::FileError;
use skein_filemesh::engine::tree::{
    Filter, Links, PATHS_MAX, Pattern, Picked, ScanRules, TreeReader, TreeSource, expand,
    is_dense_file, scan_picked,
};
use skein_wire::ids::hex_encode;

use crate::commands::Context;
use crate::error::CliError;
use crate::progress::{Progress, Reading};
use crate::{quantity, show};

/// Bytes of a tree's stream that are read at once.
const READ_BYTES: u64 = 256 * 1024;
/// Paths that were left out and are named.
const SKIPPED_NAMED: usize = 5;

/// What is taken, and how it is put in place.
#[derive(Args, Debug)]
pub struct TreeArgs {
    /// Take only paths in which this regular expression is found (may be given again)
    #[arg(long = "match", value_name = "REGEX")]
    matching: Vec<String>,
    /// Leave out what this glob matches, as in '*.log' or 'build/**' (may be given again)
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// What becomes of symbolic links in directories; ones that lead out of them are refused
    #[arg(long, value_enum, default_value = "keep")]
    symlinks: Symlinks,
    /// What stays as it is at the source; owners by name, links are names of one file
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "mode,times,links",
        value_name = "LIST"
    )]
    preserve: Vec<Preserved>,
    /// What happens to files that are there: replaced one by one, or the push refused by that host
    #[arg(long, value_enum, default_value = "replace")]
    existing: Existing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Symlinks {
    /// Send them as links
    Keep,
    /// Send what they lead to
    Follow,
    /// Leave them out
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Preserved {
    /// Permissions (else 0644 and 0755)
    Mode,
    /// Modification times
    Times,
    /// User and group
    Owner,
    /// Hard links
    Links,
    /// Nothing of these
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Existing {
    Replace,
    Refuse,
}

impl TreeArgs {
    fn keeps(&self, what: Preserved) -> bool {
        self.preserve.contains(&what) && !self.preserve.contains(&Preserved::None)
    }

    /// As the API has it.
    pub fn request(&self) -> TreeRequest {
        TreeRequest {
            matching: self.matching.clone(),
            exclude: self.exclude.clone(),
            links: match self.symlinks {
                Symlinks::Keep => TreeLinks::Keep,
                Symlinks::Follow => TreeLinks::Follow,
                Symlinks::Skip => TreeLinks::Skip,
            },
            plain_modes: !self.keeps(Preserved::Mode),
            owners_by_name: self.keeps(Preserved::Owner),
            copy_hard_links: !self.keeps(Preserved::Links),
            times_of_arrival: !self.keeps(Preserved::Times),
            refuse_existing: self.existing == Existing::Refuse,
        }
    }

    /// Whether one file may travel as it is.
    fn is_plain(&self) -> bool {
        let links = TreeLinks::default();
        TreeRequest { links, ..self.request() } == TreeRequest::default()
    }

    fn rules(&self) -> Result<ScanRules, CliError> {
        let matching: Vec<_> = self.matching.iter().cloned().map(Pattern::Regex).collect();
        let exclude: Vec<_> = self.exclude.iter().cloned().map(Pattern::Glob).collect();
        Ok(ScanRules {
            filter: Filter::new(&matching, &exclude).map_err(|e| CliError::Usage(e.to_string()))?,
            links: match self.symlinks {
                Symlinks::Keep => Links::Keep,
                Symlinks::Follow => Links::Follow,
                Symlinks::Skip => Links::Skip,
            },
            owner_names: self.keeps(Preserved::Owner),
            hard_links: self.keeps(Preserved::Links),
            plain_modes: !self.keeps(Preserved::Mode),
            ..ScanRules::default()
        })
    }
}

/// What was uploaded, and what is left to ask of it.
pub struct Sent {
    /// The upload.
    pub source: TransferSource,
    /// A name that the request must still ask for.
    pub file_name: Option<String>,
    /// What a tree is asked at its targets.
    pub tree: TreeRequest,
}

/// Sends `paths` to the server: one dense file as it is, everything else as a tree.
pub fn upload(
    paths: &[PathBuf],
    name: Option<&str>,
    args: &TreeArgs,
    context: &Context,
) -> Result<Sent, CliError> {
    let mut picked = pick(paths)?;
    if args.is_plain()
        && let [one] = &picked[..]
        && let Some(source) = upload_file(one, name, context)?
    {
        let (file_name, tree) = (name.map(str::to_owned), TreeRequest::default());
        return Ok(Sent { source, file_name, tree });
    }
    if let Some(new) = name {
        match &mut picked[..] {
            [Picked { name: Some(name), .. }] => *name = new.as_bytes().to_vec(),
            _ => return Err(CliError::Usage("--name is for one file or directory".into())),
        }
    }
    let source = Arc::new(scan_picked(&picked, &args.rules()?).map_err(failed)?);
    if source.listing().len() == 1 {
        return Err(CliError::Usage("nothing there is taken; see --match and --exclude".into()));
    }
    let asked = args.request();
    let tree = TreeRequest {
        owners_by_name: asked.owners_by_name,
        times_of_arrival: asked.times_of_arrival,
        refuse_existing: asked.refuse_existing,
        ..TreeRequest::default()
    };
    Ok(Sent { source: upload_tree(source, context)?, file_name: None, tree })
}

fn pick(paths: &[PathBuf]) -> Result<Vec<Picked>, CliError> {
    let mut picked = vec![];
    for given in paths {
        for path in expand(given).map_err(failed)? {
            picked.push(Picked::find(&path).map_err(failed)?);
        }
        if picked.len() > PATHS_MAX {
            return Err(CliError::Usage(format!("more than {PATHS_MAX} paths; give a directory")));
        }
    }
    Ok(picked)
}

/// One file that goes inside the request, where it is small enough and nothing else is asked for.
pub fn small(
    paths: &[PathBuf],
    new_name: Option<&str>,
    args: &TreeArgs,
    gear: &str,
) -> Result<Option<Sent>, CliError> {
    let picked = pick(paths)?;
    let [one] = &picked[..] else { return Ok(None) };
    if !args.is_plain() || !["auto", "inline"].contains(&gear) {
        return Ok(None);
    }
    let Some(Dense { file, metadata, name }) = Dense::open(one, new_name)? else {
        return Ok(None);
    };
    if metadata.len() > INLINE_BYTES_MAX {
        return Ok(None);
    }
    let cannot = |error| CliError::io(format!("cannot read {}", one.path.display()))(error);
    let mut content = Vec::new();
    file.take(metadata.len()).read_to_end(&mut content).map_err(cannot)?;
    if content.len() as u64 != metadata.len() {
        return Err(cannot(ErrorKind::UnexpectedEof.into()));
    }
    let source = TransferSource::Content {
        name,
        mode: metadata.permissions().mode() & 0o7777,
        mtime_ms: mtime_ms(&metadata),
        content_hex: hex_encode(&content),
    };
    let file_name = new_name.map(str::to_owned);
    Ok(Some(Sent { source, file_name, tree: TreeRequest::default() }))
}

/// How many bytes would travel.
pub fn stream_bytes(paths: &[PathBuf], args: &TreeArgs) -> Result<u64, CliError> {
    let picked = pick(paths)?;
    if args.is_plain()
        && let [one] = &picked[..]
        && let Some(dense) = Dense::open(one, Some("file"))?
    {
        return Ok(dense.metadata.len());
    }
    Ok(scan_picked(&picked, &args.rules()?).map_err(failed)?.layout().stream_bytes())
}

/// A regular file without holes, which can travel as it is.
struct Dense {
    file: File,
    metadata: Metadata,
    name: String,
}

impl Dense {
    /// None: it must travel as a tree.
    fn open(picked: &Picked, new_name: Option<&str>) -> Result<Option<Self>, CliError> {
        let path = &picked.path;
        let cannot = |error| CliError::io(format!("cannot read {}", path.display()))(error);
        // Opening a pipe would wait for whoever writes to it.
        if !path.metadata().map_err(cannot)?.is_file() {
            return Ok(None);
        }
        let file = File::open(path).map_err(cannot)?;
        let own_name = picked.name.as_deref().and_then(|name| std::str::from_utf8(name).ok());
        let name = own_name.or(new_name).filter(|_| is_dense_file(&file).unwrap_or(true));
        let Some(name) = name.map(str::to_owned) else { return Ok(None) };
        let metadata = file.metadata().map_err(cannot)?;
        Ok(Some(Self { file, metadata, name }))
    }
}

fn mtime_ms(metadata: &Metadata) -> Option<i64> {
    let modified = metadata.modified().ok()?;
    let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

/// What changes when somebody writes into a file.
fn stamp(metadata: &Metadata) -> (u64, (i64, i64), (i64, i64)) {
    (
        metadata.len(),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    )
}

fn failed(error: FileError) -> CliError {
    CliError::Local(error.to_string())
}

/// Uploads a regular file that can travel as it is; none: it cannot.
fn upload_file(
    picked: &Picked,
    new_name: Option<&str>,
    context: &Context,
) -> Result<Option<TransferSource>, CliError> {
    let Some(Dense { file, metadata, name }) = Dense::open(picked, new_name)? else {
        return Ok(None);
    };
    let mut query = vec![
        ("name", name.clone()),
        ("mode", (metadata.permissions().mode() & 0o7777).to_string()),
    ];
    query.extend(mtime_ms(&metadata).map(|time_ms| ("mtime_ms", time_ms.to_string())));
    let length = metadata.len();
    // A file that grows while it is sent is cut at the length that was promised.
    let sent = send(&query, &name, length, (&file).take(length), context);
    let path = picked.path.display();
    let after = file.metadata().map_err(CliError::io(format!("cannot read {path}")))?;
    // The server has a mixture, which it drops when nobody asks for it.
    if sent.is_ok() && stamp(&after) != stamp(&metadata) {
        return Err(CliError::Local(format!("{path} changed while it was read; push it again")));
    }
    sent.map(Some)
}

fn upload_tree(source: Arc<TreeSource>, context: &Context) -> Result<TransferSource, CliError> {
    if !context.json {
        eprintln!("{}: {}", show::printable(source.name().to_owned()), summary(&source));
        for (path, what) in source.skipped().named.iter().take(SKIPPED_NAMED) {
            let path = show::printable(path.display().to_string());
            eprintln!("  left out: {path} is {what}");
        }
        let more = source.skipped().count.saturating_sub(SKIPPED_NAMED as u64);
        if more > 0 {
            eprintln!("  left out: {} more", quantity::count(more));
        }
    }
    let length = source.layout().stream_bytes();
    let name = source.name().to_owned();
    let query = [("name", name.clone()), ("tree", "true".to_owned())];
    let stream = TreeStream { reader: TreeReader::new(source), at: 0, chunk: vec![], used: 0 };
    send(&query, &name, length, stream, context)
}

/// What a tree holds, in words.
fn summary(source: &TreeSource) -> String {
    let listing = source.listing();
    let (mut files, mut directories, mut links, mut apparent) = (0, 0, 0, 0);
    for entry in 1..listing.len() {
        match listing.kind(entry) {
            Kind::File { size_bytes } | Kind::Sparse { size_bytes, .. } => {
                files += 1;
                apparent += size_bytes;
            }
            Kind::Directory => directories += 1,
            Kind::Symlink(_) | Kind::HardLink(_) => links += 1,
        }
    }
    let content = source.layout().stream_bytes() - source.layout().listing_bytes();
    let mut text = show::plural(files, "file");
    if links > 0 {
        text += &format!(", {}", show::plural(links, "link"));
    }
    if directories > 0 {
        let word = if directories == 1 { "directory" } else { "directories" };
        text += &format!(", {} {word}", quantity::count(directories));
    }
    text += &format!(", {}", quantity::bytes(apparent));
    if content < apparent / 2 {
        text += &format!(" of which {} are not holes", quantity::bytes(content));
    }
    text
}

fn send(
    query: &[(&str, String)],
    name: &str,
    length: u64,
    content: impl Read,
    context: &Context,
) -> Result<TransferSource, CliError> {
    let title = format!("upload {}", show::printable(name.to_owned()));
    let mut progress = Progress::new(&title, length, true, context.json);
    let mut content = Reading::new(content, &mut progress);
    match context.client.upload(query, length, &mut content) {
        Ok(upload) => {
            progress.finish(&format!("{} to the server", quantity::bytes(length)));
            Ok(TransferSource::Upload { upload_id: upload.upload_id })
        }
        Err(error) => {
            progress.clear();
            Err(error)
        }
    }
}

/// A tree's stream from its start to its end.
struct TreeStream {
    reader: TreeReader,
    at: u64,
    chunk: Vec<u8>,
    used: usize,
}

impl Read for TreeStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.chunk.len() {
            let length = self.reader.source().layout().stream_bytes() - self.at;
            let length = length.min(READ_BYTES);
            self.chunk.clear();
            self.used = 0;
            let read = self.reader.append_at(self.at, length as usize, &mut self.chunk);
            read.map_err(io::Error::other)?;
            self.at += length;
        }
        let length = buffer.len().min(self.chunk.len() - self.used);
        buffer[..length].copy_from_slice(&self.chunk[self.used..][..length]);
        self.used += length;
        Ok(length)
    }
}
