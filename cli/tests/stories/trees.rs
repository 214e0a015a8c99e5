//! `skein push` of directories, patterns and many paths: what arrives is what left, or nothing does
//! and the reason is said.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use skein_cli::local::{AgentOptions, LocalAgent, wait_for};
use skein_filemesh::core::tree::listing::Kind;

use super::world::{WAIT, World};

/// Files under `root`, with the number of each as content, repeated.
fn files(root: &Path, names: &[&str]) {
    for (number, name) in names.iter().enumerate() {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{number} ").repeat(number * 1_000)).unwrap();
    }
}

/// All paths below `root`, sorted.
fn below(root: &Path) -> Vec<String> {
    let mut found = vec![];
    let mut rest = vec![root.to_path_buf()];
    while let Some(dir) = rest.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                rest.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The folder of an agent's host that things are pushed to, and how `--to` names it.
fn place(agent: &LocalAgent, folder: &str) -> (PathBuf, String) {
    let target = agent.host().join(folder);
    let to = format!("{}:{}", agent.id(), target.display());
    (target, to)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_directory_arrives_with_everything_in_it() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let release = world.dir.path().join("release");
    files(&release, &["bin/empty", "bin/app", "lib/deep/er/x.so", "doc/new\nline", ".hidden"]);
    fs::write(release.join("doc/one byte"), "1").unwrap();
    fs::write(release.join("doc").join(OsStr::from_bytes(b"\xff\xfe")), "not UTF-8").unwrap();
    fs::write(release.join("doc").join("x".repeat(255)), "long").unwrap();
    fs::create_dir(release.join("spool")).unwrap();
    symlink("../bin/app", release.join("lib/current")).unwrap();
    fs::hard_link(release.join("bin/app"), release.join("bin/other name")).unwrap();
    fs::set_permissions(release.join("bin/app"), fs::Permissions::from_mode(0o751)).unwrap();
    let old = std::time::UNIX_EPOCH + Duration::new(1_000_000_007, 123_456_789);
    File::open(release.join("bin/app")).unwrap().set_modified(old).unwrap();

    // Under its own name, in one step.
    let (srv, to) = place(&agent, "srv");
    let out = world.skein_ends(0, &["push", text(&release), "--mkdir", "--to", &to]);
    assert!(out.contains("release verified on 1 of 1 host"), "{out}");
    let arrived = srv.join("release");
    assert_eq!(below(&arrived), below(&release));
    let app = arrived.join("bin/app").metadata().unwrap();
    assert_eq!((app.permissions().mode() & 0o7777, app.modified().unwrap()), (0o751, old));
    assert_eq!(app.ino(), arrived.join("bin/other name").metadata().unwrap().ino());
    assert_eq!(fs::read_link(arrived.join("lib/current")).unwrap(), Path::new("../bin/app"));
    for path in below(&release) {
        if release.join(&path).is_file() && !path.contains('\u{fffd}') {
            let (there, here) = (fs::read(arrived.join(&path)), fs::read(release.join(&path)));
            assert_eq!(there.unwrap(), here.unwrap(), "{path}");
        }
    }
    assert_eq!(below(&srv).iter().filter(|path| path.contains(".skein-")).count(), 0);

    // What is in it, into a folder with things of its own.
    let (app, to) = place(&agent, "app");
    files(&app, &["bin/app", "bin/own"]);
    let content = format!("{}/", release.display());
    world.skein_ends(0, &["push", &content, "--to", &to]);
    assert_eq!(fs::read(app.join("bin/app")).unwrap(), fs::read(release.join("bin/app")).unwrap());
    assert!(app.join("bin/own").exists() && app.join(".hidden").exists());

    // Under another name, and the list says that it was a tree.
    world.skein_ends(0, &["push", text(&release), "--name", "v2", "--to", &to]);
    assert_eq!(below(&app.join("v2")), below(&release));
    let list = world.skein_json(&["transfer", "ls"]);
    assert!(list.as_array().unwrap().iter().all(|transfer| transfer["tree"] == true));
}

#[test]
fn patterns_and_flags_choose_what_is_sent() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let base = world.dir.path().join("host");
    files(
        &base,
        &["logs/a.gz", "logs/b.gz", "logs/c.txt", "conf.d/x.conf", "app.conf", "deep/y.gz"],
    );
    symlink("a.gz", base.join("logs/latest")).unwrap();
    let at = |path: &str| base.join(path).display().to_string();
    let push = |folder: &str, arguments: &[&str]| {
        let (target, to) = place(&agent, folder);
        let mut all = vec!["push", "--mkdir", "--to", &to];
        all.extend_from_slice(arguments);
        world.skein_ends(0, &all);
        below(&target)
    };
    // As the shell passes them, and a pattern that it did not expand.
    let several = [&*at("app.conf"), &at("conf.d"), &at("logs/c.txt")];
    assert_eq!(push("a", &several), ["app.conf", "c.txt", "conf.d", "conf.d/x.conf"]);
    assert_eq!(push("b", &[&at("logs/*.gz")]), ["a.gz", "b.gz"]);
    assert_eq!(push("c", &[&at("**/*.gz")]), ["a.gz", "b.gz", "y.gz"]);
    // By expression, and without what is not wanted.
    let gz = ["deep", "deep/y.gz", "logs", "logs/a.gz", "logs/b.gz"];
    assert_eq!(push("d", &[&at(""), "--match", r"\.gz$"]), gz);
    assert_eq!(push("e", &[&at("logs/"), "--exclude", "*.gz"]), ["c.txt", "latest"]);
    // Links.
    assert_eq!(push("f", &[&at("logs/"), "--symlinks", "skip"]), ["a.gz", "b.gz", "c.txt"]);
    push("g", &[&at("logs/"), "--symlinks", "follow"]);
    assert!(agent.host().join("g/latest").symlink_metadata().unwrap().is_file());
    // Attributes.
    fs::set_permissions(at("logs/a.gz"), fs::Permissions::from_mode(0o600)).unwrap();
    push("h", &[&at("logs/"), "--preserve", "times"]);
    push("i", &[&at("logs/"), "--mode", "0640"]);
    let mode = |path: &str| agent.host().join(path).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("h/a.gz"), mode("i/a.gz")), (0o644, 0o640));
    // From a host, with the same flags.
    let from = format!("{}:{}", agent.id(), at("logs/*.gz"));
    assert_eq!(push("j", &["--from", &from]), ["a.gz", "b.gz"]);
    let from = format!("{}:{}", agent.id(), at(""));
    assert_eq!(push("k", &["--from", &from, "--match", r"\.gz$"]), gz);
    let from = format!("{}:{}", agent.id(), at("logs"));
    let renamed = push("l", &["--from", &from, "--name", "old", "--symlinks", "skip"]);
    assert_eq!(renamed, ["old", "old/a.gz", "old/b.gz", "old/c.txt"]);
    let nothing = world.skein(&["push", &at("logs/*.zip"), "--to", &place(&agent, "m").1]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing matches"));
}

#[test]
fn what_leads_out_or_is_in_the_way_is_refused_with_a_reason() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let tree = world.dir.path().join("tree");
    files(&tree, &["a", "dir/b"]);
    let fails = |arguments: &[&str], why: &str| {
        let output = world.skein(arguments);
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.status.success() && said.contains(why), "{arguments:?}: {said}");
    };
    let (target, to) = place(&agent, "to");
    fs::create_dir(&target).unwrap();
    for out in ["/etc/passwd", "../../etc/passwd", "dir/../../x"] {
        symlink(out, tree.join("out")).unwrap();
        fails(&["push", text(&tree), "--to", &to], "leads out of the tree");
        let from = format!("{}:{}", agent.id(), tree.display());
        fails(&["push", "--from", &from, "--to", &to], "leads out of the tree");
        fs::remove_file(tree.join("out")).unwrap();
    }
    // A link at the target is not followed into what it leads to.
    fs::create_dir(agent.host().join("elsewhere")).unwrap();
    symlink(agent.host().join("elsewhere"), target.join("tree")).unwrap();
    fails(&["push", text(&tree), "--to", &to], "is a symbolic link");
    fs::remove_file(target.join("tree")).unwrap();
    assert_eq!(below(&agent.host().join("elsewhere")), [""; 0]);
    // The agent's own folder is not for others, wherever it lies in a tree.
    let hostile = world.dir.path().join("agent");
    files(&hostile, &["identity/agent.key"]);
    let (_, host) = place(&agent, "");
    fails(&["push", text(&hostile), "--to", host.trim_end_matches('/')], "path rules");
    // Nothing was there to be replaced, and then something is.
    let content = format!("{}/", tree.display());
    world.skein_ends(0, &["push", &content, "--existing", "refuse", "--to", &to]);
    fails(&["push", &content, "--existing", "refuse", "--to", &to], "is not replaced");
    let file = tree.join("a");
    fails(&["push", text(&file), "--existing", "refuse", "--to", &to], "is not replaced");
    assert_eq!(below(&target), ["a", "dir", "dir/b"], "nothing is left aside");
}

#[test]
fn holes_travel_and_land_as_holes() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let disk = world.dir.path().join("disk.img");
    let file = File::create(&disk).unwrap();
    file.set_len(64 << 30).unwrap();
    let data: Vec<u8> = (0..10 << 20).map(|at: u32| (at / 7) as u8 | 1).collect();
    file.write_all_at(&data, 20 << 30).unwrap();
    let (target, to) = place(&agent, "images");
    let started = std::time::Instant::now();
    world.skein_ends(0, &["push", text(&disk), "--mkdir", "--to", &to]);
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let arrived = File::open(target.join("disk.img")).unwrap();
    let metadata = arrived.metadata().unwrap();
    assert_eq!(metadata.len(), 64 << 30);
    assert!(metadata.blocks() * 512 < 16 << 20, "{} blocks", metadata.blocks());
    // Found by SEEK_DATA and SEEK_HOLE.
    let rules = skein_filemesh::engine::tree::ScanRules::default();
    let scanned = skein_filemesh::engine::tree::scan(&target, &rules).unwrap();
    let Kind::Sparse { extents, .. } = scanned.listing().kind(1) else { panic!("it has no holes") };
    let written = 20 << 30..(20 << 30) + data.len() as u64;
    assert_eq!(extents, [written]);
    let mut there = vec![0; data.len()];
    arrived.read_exact_at(&mut there, 20 << 30).unwrap();
    assert!(there == data);
}

#[test]
fn two_pushes_to_one_folder_end_with_the_later_one_whole() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let (target, to) = place(&agent, "to");
    let trees = ["one", "two"].map(|name| {
        let tree = world.dir.path().join(format!("tree {name}"));
        fs::create_dir_all(&tree).unwrap();
        for number in 0..200 {
            fs::write(tree.join(format!("file {number}")), name.repeat(5_000)).unwrap();
        }
        format!("{}/", tree.display())
    });
    let ids = trees.map(|tree| {
        let out = world.skein_ends(0, &["push", &tree, "--mkdir", "--detach", "--to", &to]);
        out.trim().to_owned()
    });
    for id in &ids {
        world.skein_ends(0, &["transfer", "show", "--follow", id]);
    }
    let content = |number| fs::read(target.join(format!("file {number}"))).unwrap();
    let winner = content(0);
    assert!((1..200).all(|number| content(number) == winner), "files of both stand there");
    assert_eq!(below(&target).len(), 200);
}

/// Begins a slow push of a directory and waits for its first bytes.
fn slow_push(world: &World, to: &str) -> (PathBuf, String) {
    let tree = world.dir.path().join("tree");
    files(&tree, &["a", "dir/b", "dir/c"]);
    let large: Vec<u8> = (0..8_000_000u32).map(|at| (at / 5) as u8).collect();
    fs::write(tree.join("dir/large"), large).unwrap();
    let arguments = ["push", text(&tree), "--mkdir", "--limit", "2M", "--detach", "--to", to];
    let id = world.skein_ends(0, &arguments).trim().to_owned();
    wait_for("the first bytes", WAIT, || {
        let detail = world.skein_json(&["transfer", "show", &id]);
        (detail["transfer"]["verified_bytes"].as_u64()? > 1_000_000).then_some(())
    })
    .unwrap();
    (tree, id)
}

#[test]
fn a_cancelled_directory_leaves_nothing() {
    let world = World::new();
    let agent = world.agent("one", AgentOptions::default());
    let (target, to) = place(&agent, "to");
    let (_, id) = slow_push(&world, &to);
    assert!(below(&target).iter().any(|path| path.contains(".skein-")));
    world.skein_ends(0, &["transfer", "cancel", &id]);
    world.skein_ends(1, &["transfer", "show", "--follow", &id]);
    wait_for("nothing to be left", WAIT, || below(&target).is_empty().then_some(())).unwrap();
}

#[test]
fn a_directory_goes_on_where_it_was_when_the_agent_dies() {
    let world = World::new();
    let mut agent = world.agent("one", AgentOptions::default());
    let (target, to) = place(&agent, "to");
    let (tree, id) = slow_push(&world, &to);
    agent.kill();
    assert!(!target.join("tree").exists(), "no half of it stands there");
    agent.run().unwrap();
    world.skein_ends(0, &["transfer", "show", "--follow", &id]);
    assert_eq!(below(&target.join("tree")), below(&tree));
    let same = |path| {
        fs::read(tree.join(path)).unwrap() == fs::read(target.join("tree").join(path)).unwrap()
    };
    assert!(same("dir/large") && same("a"));
    let detail = world.skein_json(&["transfer", "show", &id]);
    assert!(detail["hosts"][0]["resumed_bytes"].as_u64().unwrap() > 0, "{detail}");
}

#[test]
fn a_directory_travels_from_host_to_host() {
    // Only root may give agents disks of their own.
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return println!("needs root, for mount namespaces");
    }
    let mut world = World::new();
    let seen = world.dir.path().join("seen");
    fs::create_dir(&seen).unwrap();
    world.binaries.agent = with_own_disk(&world, &seen);
    let agents = ["one", "two", "three"].map(|name| world.agent(name, AgentOptions::default()));
    let tree = world.dir.path().join("tree");
    files(&tree, &["a", "dir/b", "dir/deep/c"]);
    for number in 0..300u32 {
        let large: Vec<u8> = (0..4_096u32).map(|at| (at / 3 + number) as u8).collect();
        fs::write(tree.join(format!("dir/file {number}")), large).unwrap();
    }
    for gear in ["planned", "mesh", "direct"] {
        let to = format!("all:{}/{gear}", seen.display());
        let arguments = ["push", text(&tree), "--mkdir", "--gear", gear, "--to", &to];
        let out = world.skein_ends(0, &arguments);
        assert!(out.contains("verified on 3 of 3 hosts"), "{out}");
        for agent in &agents {
            let arrived = agent.host().join("disk").join(gear);
            assert_eq!(below(&arrived.join("tree")), below(&tree), "{gear}");
            assert_eq!(below(&arrived).len(), below(&tree).len() + 1, "nothing is left aside");
            let last = "dir/file 299";
            let there = fs::read(arrived.join("tree").join(last)).unwrap();
            assert_eq!(there, fs::read(tree.join(last)).unwrap());
        }
        let gears = world.skein_json(&["transfer", "ls"]);
        assert_eq!(gears[0]["gear"], gear, "{gears}");
    }
}

/// An agent that sees `disk` of its host as `seen`, as every host has its own of one name.
fn with_own_disk(world: &World, seen: &Path) -> PathBuf {
    let (agent, seen) = (world.binaries.agent.display(), seen.display());
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = run ] || exec {agent} \"$@\"\nmkdir -p \"$3/../disk\"\n\
         exec unshare -m sh -c 'mount --make-rprivate / && mount --bind \"$0/../disk\" {seen} && \
         exec {agent} \"$@\"' \"$3\" \"$@\"\n"
    );
    let path = world.dir.path().join("agent-with-own-disk");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
