/* cgroups.h: where the cgroups of this process are: the folders of a controller, of cgroup v1 or v2, from the process's
 * own up to the top of what is mounted. Whoever wants to know of cgroups asks here, the doctor too.
 *
 * /proc/self/cgroup names the own cgroup from the root of the process's cgroup namespace on, and /proc/self/mountinfo
 * names the cgroup that a mount shows at its top, from the same root on. In a container the mount may begin within the
 * path; in a namespace that still sees the mount of outside it begins above it ("/../.."), and the names in between are
 * not told: then the folder is looked for whose cgroup.procs has this process. */
#ifndef ARENA_CGROUPS_H
#define ARENA_CGROUPS_H

#include <stdbool.h>

/* Calls `folder` for each, as long as it answers true. 0: the process's own was among them, or there is no such
 * controller, or the process is in its root. 1: it is somewhere that cannot be seen; the top of what is mounted may have
 * been told, for its limits hold for all below it. -errno: what had to be read could not be (-EMFILE, …). */
int cgroups_walk(const char *controller, bool (*folder)(void *arg, const char *path, bool v1), void *arg);

#endif
