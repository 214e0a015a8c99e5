//! File systems that a test makes for itself, in an image file or in memory. Root only; elsewhere
//! the test says `skipped` and why.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system, gone with this value.
pub struct Mount {
    at: PathBuf,
    device: Option<String>,
    image: PathBuf,
    _base: tempfile::TempDir,
}

/// Runs a command; what it says on failure.
pub fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Mount {
    fn empty() -> Self {
        let base = tempfile::tempdir().unwrap();
        let (at, image) = (base.path().join("at"), base.path().join("image"));
        std::fs::create_dir(&at).unwrap();
        Self { at, device: None, image, _base: base }
    }

    pub fn tmpfs(bytes: u64) -> Result<Self, String> {
        let mount = Self::empty();
        let size = format!("size={bytes}");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", text(&mount.at)])?;
        Ok(mount)
    }

    /// A file system of `mkfs` in an image of `bytes`, behind a loop device.
    pub fn image(mkfs: &[&str], bytes: u64) -> Result<Self, String> {
        let mut mount = Self::empty();
        std::fs::File::create(&mount.image).and_then(|file| file.set_len(bytes)).unwrap();
        let image = text(&mount.image).to_owned();
        let args: Vec<&str> = mkfs[1..].iter().copied().chain([image.as_str()]).collect();
        run(mkfs[0], &args)?;
        let device = run("losetup", &["--show", "-f", &image])?;
        let mounted = run("mount", &[&device, text(&mount.at)]);
        mount.device = Some(device);
        mounted.map(|_| mount)
    }

    /// An overlay whose upper side is a file system of its own, as in containers.
    pub fn overlay(bytes: u64) -> Result<(Self, Self), String> {
        let upper = Self::tmpfs(bytes)?;
        let mount = Self::empty();
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(upper.at.join(name)).unwrap();
        }
        let [lower, up, work] = ["lower", "upper", "work"].map(|name| upper.at.join(name));
        let options =
            format!("lowerdir={},upperdir={},workdir={}", text(&lower), text(&up), text(&work));
        run("mount", &["-t", "overlay", "-o", &options, "overlay", text(&mount.at)])?;
        Ok((mount, upper))
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    pub fn read_only(&self) -> Result<(), String> {
        run("mount", &["-o", "remount,ro", text(&self.at)]).map(drop)
    }

    /// Takes the end of the device away: what lies there answers every access with EIO.
    pub fn break_after(&self, bytes: u64) -> Result<(), String> {
        let device = self.device.as_deref().ok_or("there is no device")?;
        let image = std::fs::File::options().write(true).open(&self.image).unwrap();
        image.set_len(bytes).unwrap();
        run("losetup", &["-c", device]).map(drop)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", text(&self.at)]);
        if let Some(device) = &self.device {
            let _ = run("losetup", &["-d", device]);
        }
    }
}
