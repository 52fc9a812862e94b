"""The Dockerfile's stages without a container engine, and what must be true of the result.

::

    make_base(root)                                  debootstrap stands for debian:bookworm-slim
    image = build(context, root, directory)          each instruction in a chroot
    image.start("--version")                         as docker run --read-only
"""
