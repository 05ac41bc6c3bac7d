"""The kernel lab: QEMU guests with Linux's own mdev core and its sample drivers.

`images.build()` gives the cached images, `guest.Guest` boots one machine from them. README.md in
this folder says how the parts work together and how to look into a guest.
"""
