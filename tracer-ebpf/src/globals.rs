//! Read-only globals: frozen at load, so that the verifier drops what is switched off. User space sets them all from
//! one table (`tracer/src/bpf/load.rs`). Kernel struct offsets come from the running kernel's BTF.

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $type:ty, $get:ident;)*) => {$(
        #[unsafe(no_mangle)]
        static $name: $type = 0;
        $(#[$doc])*
        #[inline(always)]
        pub fn $get() -> $type {
            // SAFETY: a plain read of an initialised static; volatile because user space rewrites it before load.
            unsafe { core::ptr::read_volatile(&raw const $name) }
        }
    )*};
}

globals! {
    /// 1 when `bpf_get_attach_cookie` may be called in uprobes (kernel 5.15).
    HAVE_COOKIE: u32, have_cookie;
    /// 1 when kernel memory may be read (0 under lockdown=confidentiality).
    READ_KERNEL: u32, read_kernel;
    /// Always 0, which only user space and the verifier know.
    NEVER: u32, never;
    /// Offset of `thread.fsbase` in `task_struct`; 0 when not known.
    OFF_FSBASE: u32, off_fsbase;
    /// Offset of `s_dev` in `super_block`.
    OFF_S_DEV: u32, off_s_dev;
    /// Offset of `s_type` in `super_block`.
    OFF_S_TYPE: u32, off_s_type;
    /// Offset of `name` in `file_system_type`.
    OFF_FS_NAME: u32, off_fs_name;
    /// Offset of `di` in the kernel's `pt_regs`, for `__x64_sys_umount(struct pt_regs *)`.
    OFF_REGS_DI: u32, off_regs_di;
    /// Offset of `orig_ax` in the kernel's `pt_regs`: the number of the system call.
    OFF_REGS_ORIG_AX: u32, off_regs_orig_ax;
    /// Offset of `sb` in `wb_writeback_work`.
    OFF_WORK_SB: u32, off_work_sb;
    /// Offset of `reason` in `wb_writeback_work`.
    OFF_WORK_REASON: u32, off_work_reason;
}
