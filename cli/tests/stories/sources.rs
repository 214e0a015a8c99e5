//! Where a file comes from and what its way there may carry: several hosts with one file, limits of
//! the whole, thin borders.

use std::process::Command;
use std::time::{Duration, Instant};

use skein_cli::local::AgentOptions;

use super::spread::{ended, everybody, file_of, folder_of};
use super::world::World;

/// One of two sources has stopped before it was asked, and dies: nobody could say which it would
/// be, so the transfer goes on with the other.
#[test]
fn a_source_that_dies_is_left_out_and_the_other_goes_on() {
    let world = World::new();
    let mut lost = world.agent("seed-1", AgentOptions::default());
    let seed = world.agent("seed-2", AgentOptions::default());
    let target = world.agent("target", AgentOptions::default());
    let file = file_of(&world, "release.bin", 3_000_000);
    let from = [lost.id(), seed.id()].map(|id| format!("{id}:{}", file.display()));
    let to = format!("{}:{}", target.id(), folder_of(&world, &target).display());
    for pid in lost.pids() {
        let stopped = Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap();
        assert!(stopped.success());
    }
    let mut push = vec!["push", "--mkdir", "--detach", "--to", &to];
    from.iter().for_each(|from| push.extend(["--from", from]));
    let id = world.skein_ends(0, &push).trim().to_owned();
    lost.kill();
    let detail = ended(&world, &id);
    assert_eq!((detail.transfer.hosts_done, detail.transfer.error.as_str()), (1, ""));
    let arrived = std::fs::read(folder_of(&world, &target).join("release.bin")).unwrap();
    assert!(arrived == std::fs::read(&file).unwrap());
    let shown = world.skein_ends(0, &["transfer", "show", &id]);
    let line = shown.lines().find(|line| line.starts_with("from   ")).unwrap_or_default();
    assert!(line.contains(&format!("{} (lost: ", from[0])), "{shown}");
    assert!(line.ends_with(&from[1]), "{shown}");
}

#[test]
fn sources_that_differ_are_named_and_nobody_gets_anything() {
    let world = World::new();
    let seeds = ["seed-1", "seed-2"].map(|name| world.agent(name, AgentOptions::default()));
    let target = world.agent("target", AgentOptions::default());
    // Both are on this machine: the same bytes and, later, others of the same size.
    let files = ["one", "two"].map(|folder| {
        let folder = world.dir.path().join(folder);
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("app.tar");
        std::fs::write(&file, vec![7; 100_000]).unwrap();
        file
    });
    let from = [0, 1].map(|at| format!("{}:{}", seeds[at].id(), files[at].display()));
    let to = format!("{}:{}", target.id(), folder_of(&world, &target).display());
    let push = ["push", "--mkdir", "--from", &from[0], "--from", &from[1], "--to", &to];
    assert!(world.skein_ends(0, &push).contains("verified on 1 of 1 host"));
    std::fs::remove_file(folder_of(&world, &target).join("app.tar")).unwrap();
    std::fs::write(&files[1], vec![8; 100_000]).unwrap();
    let refused = world.skein(&push);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("do not have the same content"), "{why}");
    assert!(from.iter().all(|from| why.contains(from)), "{why}");
    assert_eq!(std::fs::read_dir(folder_of(&world, &target)).unwrap().count(), 0);
}

/// All agents are on one machine and the server could send each of them hundreds of megabytes per
/// second; that this takes its time is due to the limit alone.
#[test]
fn what_the_server_sends_of_a_transfer_can_be_limited_in_total() {
    let world = World::new();
    let agents = ["one", "two", "three"].map(|name| world.agent(name, AgentOptions::default()));
    let file = file_of(&world, "release.bin", 4 << 20);
    let (path, to) = (file.to_str().unwrap(), everybody(&world));
    let began = Instant::now();
    let place = ["push", path, "--mkdir", "--to", &to];
    let flags = ["--gear", "direct", "--limit-total", "2M"];
    let out = world.skein_ends(0, &[&place[..], &flags[..]].concat());
    assert!(out.contains("verified on 3 of 3 hosts"), "{out}");
    // 12 MiB at 2 MB/s or 2 MiB/s, less half a second and the request that each may owe.
    assert!(began.elapsed() >= Duration::from_secs(4), "{:?}", began.elapsed());
    super::spread::assert_all_have(&world, &agents, &file, "release.bin");
    let low = world.skein(&["push", path, "--to", &to, "--limit-total", "1000"]);
    let why = String::from_utf8_lossy(&low.stderr).into_owned();
    assert!(!low.status.success() && why.contains("65536"), "{why}");
}

#[test]
fn a_thin_border_is_reckoned_with() {
    let world = World::with_config(
        "[planner]\nserver_region = \"hq\"\n\
         [[planner.border]]\nregion = \"eu\"\nin_bytes_s = 1000000\n",
    );
    let _agents = [("one", "eu"), ("two", "eu"), ("three", "hq")].map(|(name, region)| {
        world.agent(name, AgentOptions { region: region.into(), ..AgentOptions::default() })
    });
    let file = file_of(&world, "release.bin", 8 << 20);
    let forecast = |to: &str| {
        let to = format!("{to}:{}", world.dir.path().join("to").display());
        world.skein_ends(0, &["push", file.to_str().unwrap(), "--dry-run", "--to", &to])
    };
    let eu = forecast("region=eu");
    let line = |gear: &str| eu.lines().find(|line| line.starts_with(gear)).unwrap_or_default();
    for gear in ["direct", "planned"] {
        assert!(line(gear).contains("the border of region \"eu\" carries 8 Mbit/s"), "{eu}");
    }
    assert!(!forecast("region=hq").contains("border"));
}
