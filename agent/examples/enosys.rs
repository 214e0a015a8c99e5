//! Runs a program on a kernel that looks old: system calls younger than the oldest kernels that
//! the agent serves answer ENOSYS, by a seccomp filter that the program and its children inherit.
//!
//! `enosys PROGRAM ARGS...` runs it; `enosys --check` proves that the filter works here.

#![allow(unsafe_code)] // prctl and raw system calls have no safe form in std.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// System calls that old kernels lack.
const HIDDEN: [libc::c_long; 12] = [
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_openat2,
    libc::SYS_statx,
    libc::SYS_memfd_create,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_clone3,
    libc::SYS_copy_file_range,
    libc::SYS_close_range,
];

/// Offset of the system call's number in `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
/// `SECCOMP_RET_ERRNO`, whose low half is the error.
const RETURN_ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
const RETURN_ALLOW: u32 = 0x7fff_0000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((program, rest)) = arguments.split_first() else {
        eprintln!("usage: enosys PROGRAM ARGS... | enosys --check");
        std::process::exit(2);
    };
    if let Err(error) = install() {
        eprintln!("enosys: cannot install the seccomp filter: {error}");
        std::process::exit(2);
    }
    if program == "--check" {
        return check();
    }
    let error = Command::new(program).args(rest).exec();
    eprintln!("enosys: cannot run {program}: {error}");
    std::process::exit(2);
}

/// One jump per hidden call to the verdict at the end, else on to "allow".
fn filter() -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NUMBER_OFFSET)];
    for (index, number) in HIDDEN.iter().enumerate() {
        program.push(libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            // Over the remaining comparisons and "allow".
            jt: u8::try_from(HIDDEN.len() - index).expect("a dozen calls fit"),
            jf: 0,
            k: u32::try_from(*number).expect("system call numbers are small"),
        });
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, RETURN_ALLOW));
    program.push(statement(libc::BPF_RET | libc::BPF_K, RETURN_ENOSYS));
    program
}

fn install() -> io::Result<()> {
    let mut program = filter();
    let header = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a dozen statements fit"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: prctl reads `header` and the statements it points to during the call only; both
    // live until after it.
    let result = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const header)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Every hidden call answers ENOSYS, and an ordinary one still works.
fn check() {
    for number in HIDDEN {
        // SAFETY: the call is refused by the filter before the kernel looks at its arguments;
        // were it not, null pointers and zero lengths are refused by the kernel itself.
        let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
        let error = io::Error::last_os_error().raw_os_error();
        assert!(result == -1 && error == Some(libc::ENOSYS), "call {number}: {result} {error:?}");
    }
    assert!(std::fs::metadata("/").is_ok(), "std falls back from statx to stat");
    println!("enosys: {} system calls are hidden", HIDDEN.len());
}
