/* launch ENVFILE -- PROGRAM [ARGUMENT…]: start PROGRAM with the environment that ENVFILE describes.
 *
 * Theory of operation: Docker's API carries environment values as JSON text, so bytes that are not UTF-8 would be
 * lost, and whoever may inspect a container would read them. mbridge writes the target's environment into a file of
 * the session's volume instead, and this program, the first thing that runs in the app's container, puts it in place.
 * It stays out of the way afterwards: exec, same PID, no descriptor left open, stdio and signals untouched.
 *
 * ENVFILE is a sequence of entries, each ended by a NUL (the last NUL may be missing). They apply in order, the later
 * one wins, and the environment starts out empty:
 *     NAME=value   sets NAME; every byte but NUL may stand in the value
 *     +            takes over all that launch itself was started with (what `docker run` gave: -e, the image's, HOME)
 *     +NAME        takes over NAME alone, where it is set
 *     -NAME        removes NAME
 *     @ROWSxCOLS   the window size of the terminal on stdin, if there is one: an engine sets it only after the start,
 *                  when a program may have asked for it already
 * An entry with a `=` past its first byte is always a setting, so "-x=1" sets a variable called "-x".
 *
 * PROGRAM is looked up in the PATH of the new environment. Exit codes are docker run's: 127 not found, 126 found but
 * not executable, 125 when launch itself failed (usage, ENVFILE).
 *
 * Limits: static, so that it runs in any image of its architecture, also an empty one. ENVFILE is at most 16 MiB; the
 * kernel's own limits (128 KiB an entry, a quarter of the stack in sum) show as 126, "Argument list too long".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { FAILED = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };
enum { FILE_MAX = 16 << 20 };

static int complain(int code, const char *what, const char *why)
{
	fprintf(stderr, "mbridge: launch: %s: %s\n", what, why);
	return code;
}

/* The whole file, ended by an extra NUL, so that a last entry without one is ended too; NULL with errno set. */
static char *read_file(const char *path, size_t *length)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	size_t used = 0, size = 64 << 10;
	char *bytes = malloc(size + 1);
	while (bytes) {
		ssize_t n = read(fd, bytes + used, size - used);
		if (n == 0)
			break;
		if (n < 0 && errno == EINTR)
			continue;
		if (n > 0)
			used += (size_t)n;
		if (n < 0 || used > FILE_MAX) {
			int why = n < 0 ? errno : EFBIG;
			free(bytes);
			errno = why;
			bytes = NULL;
		} else if (used == size) {
			char *larger = realloc(bytes, 2 * size + 1);
			if (!larger)
				free(bytes);
			bytes = larger;
			size *= 2;
		}
	}
	int kept = errno;
	close(fd);
	errno = kept;
	if (bytes)
		bytes[used] = 0;
	*length = used;
	return bytes;
}

/* putenv() and not setenv(): the entry is used where it lies, and duplicates are replaced. */
static int take_over(char *const *inherited, const char *name)
{
	size_t length = strlen(name);
	for (; *inherited; inherited++) {
		const char *equals = strchr(*inherited, '=');
		if (!equals || equals == *inherited)
			continue;
		if (length == 0 || ((size_t)(equals - *inherited) == length && !strncmp(*inherited, name, length)))
			if (putenv(*inherited))
				return -1;
	}
	return 0;
}

/* No terminal, or a size that makes no sense: the program starts all the same. */
static void resize(const char *words)
{
	struct winsize window = { 0 };
	if (sscanf(words, "%hux%hu", &window.ws_row, &window.ws_col) == 2)
		ioctl(STDIN_FILENO, TIOCSWINSZ, &window);
}

static int apply(char *entry, char *const *inherited)
{
	if (*entry && *entry != '=' && strchr(entry + 1, '='))
		return putenv(entry);
	if (*entry == '+')
		return take_over(inherited, entry + 1);
	if (*entry == '-' && entry[1])
		return unsetenv(entry + 1);
	if (*entry == '@')
		resize(entry + 1);
	return 0; /* empty, or neither a setting nor a directive: what /proc/PID/environ may hold after setproctitle() */
}

int main(int argc, char **argv)
{
	if (argc < 4 || strcmp(argv[2], "--") != 0)
		return complain(FAILED, "usage", "launch ENVFILE -- PROGRAM [ARGUMENT...]");
	size_t length;
	char *entries = read_file(argv[1], &length);
	if (!entries)
		return complain(FAILED, argv[1], strerror(errno));

	extern char **environ;
	char **inherited = environ;
	static char *nothing[] = { NULL };
	environ = nothing;
	for (char *entry = entries; entry < entries + length; entry += strlen(entry) + 1)
		if (apply(entry, inherited))
			return complain(FAILED, argv[1], strerror(errno));

	execvp(argv[3], argv + 3);
	return complain(errno == ENOENT || errno == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE, argv[3], strerror(errno));
}
