/* probe NAME PORT: the same as probe.go with the C library's resolver. Built twice: musl static, glibc dynamic. */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC }, *found;
	if (argc != 3)
		return 2;
	int code = getaddrinfo(argv[1], argv[2], &hints, &found);
	if (code) {
		printf("{\"resolve\": \"%s\"}\n", code == EAI_NONAME ? "not found" : "failed");
		return 0;
	}
	printf("{\"addresses\": [");
	struct addrinfo *v4 = NULL;
	for (struct addrinfo *one = found; one; one = one->ai_next) {
		char text[64];
		getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST);
		printf("%s\"%s\"", one == found ? "" : ", ", text);
		if (one->ai_family == AF_INET && !v4)
			v4 = one;
	}
	printf("]");
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (!v4 || connect(fd, v4->ai_addr, v4->ai_addrlen)) {
		printf(", \"connect\": \"%s\"}\n", errno == ECONNREFUSED ? "refused" : strerror(errno));
		return 0;
	}
	struct sockaddr_in own;
	socklen_t length = sizeof own;
	getsockname(fd, (struct sockaddr *)&own, &length);
	char said[1024] = { 0 }, escaped[2048], *to = escaped;
	size_t used = 0;
	for (ssize_t n; (n = read(fd, said + used, sizeof said - 1 - used)) > 0;)
		used += (size_t)n;
	for (char *from = said; *from; from++) {
		if (*from == '"' || *from == '\n')
			*to++ = '\\';
		*to++ = *from == '\n' ? 'n' : *from;
	}
	*to = 0;
	printf(", \"own\": \"%s\", \"said\": \"%s\"}\n", inet_ntoa(own.sin_addr), escaped);
	return 0;
}
